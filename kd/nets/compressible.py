"""Which layers of a network quantisation and pruning work on."""

from torch import nn

from kd.errors import ConfigError


def compressible(network: nn.Module, done: str) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return a network's 2-d convolutions and linear layers by name; those with code of their own are included.

    `done` is what shall happen to them, for the message. Raises `ConfigError` if there is none, or if a weight of two
    or more dimensions lies elsewhere (attention, embeddings, other convolutions): it would silently stay as it is.
    """
    if not isinstance(network, nn.Module):
        raise ConfigError(f"Expected `network` to be a network to be {done}, but got {network!r}.")
    found = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    inside = {parameter for layer in found.values() for parameter in layer.parameters()}
    outside = [name for name, parameter in network.named_parameters() if parameter.ndim > 1 and parameter not in inside]
    if outside or not found:
        which = (
            f", but {', '.join(outside)} of {type(network).__name__} are others" if outside else ", but there is none"
        )
        raise ConfigError(f"The weights of 2-d convolutions and linear layers can be {done}{which}.")
    return found
