"""Magnitude pruning: a network that loses a share of its weights while it is trained."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils.weak import WeakTensorKeyDictionary

from kd import check
from kd.errors import ConfigError
from kd.nets.compressible import compressible

fx.wrap("advance")  # one node of a traced network: it counts, and changes the masks

#: by tensor: its version, and what was read of it
READ: MutableMapping[Tensor, tuple[int, int]] = WeakTensorKeyDictionary()


class Pruned(nn.Module):
    """A network of whose every convolution and linear layer the share `sparsity` of the weights is zero.

    Gradual magnitude pruning, Zhu and Gupta 2017 (1710.01878): every `every` training steps the smallest weights of
    each layer are masked, at step t the share `sparsity (1 - (1 - t / ramp)^3)`, until it is whole at step `ramp`. Then
    the masks are fixed, and the rest of the training mends what is left. A masked weight gets no gradient. A step is
    counted as a forward pass in train mode. What is stored are the dense weights and the masks: they belong together.

    In eval mode the sparsity is always the final one, also of a network whose ramp is not over: validation selects
    among networks as they would be deployed. Biases and norms are not pruned. Parameters and multiply-accumulates are
    counted as of the dense network; latency and stored size are those of the simulation.

    Taps are the network's, below `network`: `network.layer1`.

    Args:
        network: any whose weights lie in 2-d convolutions and linear layers, also a `Quantized`; it is changed.
        sparsity: the share of weights that are zero, at least 0 and below 1; in each layer rounded to a whole number.
        ramp: the number of training steps until it is reached; choose it well below those of the whole training.
        every: steps between two looks at the magnitudes.
    """

    step: Tensor

    def __init__(self, network: nn.Module, sparsity: float = 0.8, ramp: int = 2000, every: int = 100) -> None:
        super().__init__()
        sparsity = check.number("sparsity", sparsity, low=0, high=1)
        self.ramp = check.integer("ramp", ramp, low=1)
        self.every = check.integer("every", every, low=1)
        self.layers = list(compressible(network, "pruned"))
        for name in self.layers:
            layer = network.get_submodule(name)
            assert isinstance(layer.weight, Tensor)
            removed = round(sparsity * layer.weight.numel())
            if removed == layer.weight.numel():
                raise ConfigError(f"`sparsity` {sparsity:g} leaves layer {name!r} no weight; choose a smaller one.")
            parametrize.register_parametrization(layer, "weight", Mask(layer.weight, removed))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.network = network

    def forward(self, image: Tensor) -> Any:
        if self.training:
            pruned = [self.network.get_submodule(f"{name}.parametrizations.weight") for name in self.layers]
            masks = [one[0] for one in pruned]  # type: ignore[index]
            image = advance(
                image,
                self.step,
                [cast(Tensor, one.original) for one in pruned],
                [mask.mask for mask in masks],
                [mask.removed for mask in masks],
                self.ramp,
                self.every,
            )
        return self.network(image)


class Mask(nn.Module):
    """A layer's weight with zeros where it is pruned; `removed` of them in the end, and in eval mode at any time."""

    mask: Tensor

    def __init__(self, weight: Tensor, removed: int) -> None:
        super().__init__()
        self.removed = removed
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        mask = self.mask
        if not self.training and not weight.is_meta and known(mask, count) != weight.numel() - self.removed:
            mask = kept(weight, self.removed)
        return weight * mask


@torch.compiler.disable  # type: ignore[untyped-decorator]
def advance(
    image: Tensor,
    step: Tensor,
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    removed: Sequence[int],
    ramp: int,
    every: int,
) -> Tensor:
    """Count a training step, and renew the masks when it is time. The image comes back: that ties this to the graph."""
    if step.is_meta:  # nothing to count
        return image
    with torch.no_grad():
        now = known(step, int)
        if now <= ramp and (now % every == 0 or now == ramp):
            share = 1 - (1 - now / ramp) ** 3
            for weight, mask, final in zip(weights, masks, removed, strict=True):
                gone = round(share * final)
                mask.copy_(kept(weight, gone))
                note(mask, weight.numel() - gone)
        note(step.add_(1), now + 1)
    return image


@torch.compiler.disable  # type: ignore[untyped-decorator]
def known(tensor: Tensor, read: Callable[[Tensor], int]) -> int:
    """Return `read(tensor)`, read again only where something has written to the tensor: a GPU is waited for then."""
    if tensor.is_inference():  # nothing counts what is written to it
        return read(tensor)
    version, value = READ.get(tensor, (-1, 0))
    if version != tensor._version:
        value = read(tensor)
        note(tensor, value)
    return value


def note(tensor: Tensor, value: int) -> None:
    """Remember what would be read of a tensor as it is now."""
    if not tensor.is_inference():
        READ[tensor] = tensor._version, value


def count(mask: Tensor) -> int:
    return int(mask.sum())


def kept(weight: Tensor, removed: int) -> Tensor:
    """Return a mask like `weight` that is False for exactly the `removed` smallest magnitudes; of equals, the first."""
    smallest = weight.detach().abs().flatten().argsort(stable=True)[:removed]
    mask = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    mask[smallest] = False
    return mask.view(weight.shape)
