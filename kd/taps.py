"""Taps: named intermediate outputs of any network, read by a pure function (torch.fx) instead of hooks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from kd.check import nearest
from kd.errors import ConfigError
from kd.types import Output

LOGITS = "logits"


class Tapped(nn.Module):
    """A network whose forward returns an `Output`: its logits, and the taps that were asked for.

    Without taps the network runs as it is. With taps, one traced graph per mode (train, eval) that shares the network's
    modules and parameters. A network that returns an `Output` itself is taken at its word.
    Raises `ConfigError` for a tap that the network does not have, with the list of those it has.
    """

    def __init__(self, network: nn.Module, taps: Sequence[str] = (), *, owner: str = "network") -> None:
        super().__init__()
        self.network = network
        self.names = tuple(taps)
        self._graph: tuple[Any, ...] = ()  # in a tuple: the graph's modules are the network's own, registered once
        if self.names:
            self._graph = (_extractor(network, self.names, owner),)

    def forward(self, image: Tensor) -> Output:
        if self._graph:
            graph = self._graph[0]
            if graph.training != self.network.training:
                graph.train(self.network.training)  # each mode has its own trace
            outputs = graph(image)
            return Output(outputs.pop(LOGITS), outputs)
        output = self.network(image)
        return output if isinstance(output, Output) else Output(output, {})


def _extractor(network: nn.Module, taps: Sequence[str], owner: str) -> nn.Module:
    modes = [module.training for module in network.modules()]
    try:
        with torch.no_grad():
            _, nodes = get_graph_node_names(network)
    except Exception as error:  # fx raises many types on code that it cannot follow
        raise ConfigError(
            f"The {owner}'s network {type(network).__name__} cannot be traced ({error}), so it has no taps; "
            "let its forward return a kd.types.Output with the taps itself."
        ) from error
    known = [node for node in nodes if node not in ("x", "image", "input")]
    names = _prefixes(known)
    for tap in taps:
        if tap not in names:
            raise ConfigError(f"Unknown layer {tap!r} of the {owner}.{nearest(tap, names)} Known: {', '.join(names)}.")
    extractor: nn.Module = create_feature_extractor(
        network, return_nodes={**{tap: tap for tap in taps}, known[-1]: LOGITS}
    )
    for module, mode in zip(network.modules(), modes, strict=True):
        module.training = mode
    return extractor


def _prefixes(nodes: Sequence[str]) -> list[str]:
    """Every node, and every module that holds nodes: `layer1` stands for the last node inside it."""
    names: dict[str, None] = {}
    for node in nodes:
        parts = node.split(".")
        for length in range(1, len(parts) + 1):
            names[".".join(parts[:length])] = None
    return list(names)
