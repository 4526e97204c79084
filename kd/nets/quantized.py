"""Quantisation-aware training: a network that computes with weights and activations rounded to a few bits."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kd import check
from kd.collectives import largest
from kd.errors import ConfigError
from kd.nets.compressible import compressible

# one node each in a traced network: one of them changes buffers, and their parts are no layers to be tapped
fx.wrap("quantized_weight")
fx.wrap("quantized_activation")


class Quantized(nn.Module):
    """A network whose convolutions and linear layers see their weights and inputs as integers of `bits` bits.

    Jacob et al. 2018 (1712.05877), with a scale per output channel for the weights (Krishnamoorthi 2018, 1806.08342).
    The rounding is simulated in floating point, in training and in evaluation alike, so that the test accuracy is that
    of the integer network; sums, biases and everything between the layers stay floating point. Batch norms need no
    folding: a factor per output channel changes the channel's scale and no integer. Parameters and multiply-accumulates
    are the network's own; latency and stored size are those of the simulation.

    Taps are the network's, below `network`: `network.layer1`.

    Args:
        network: any whose weights lie in 2-d convolutions and linear layers; it is changed.
        bits: from 2 to 8.
        averaging: how much of an activation's range a training step renews, above 0 and at most 1.
    """

    def __init__(self, network: nn.Module, bits: int = 8, averaging: float = 0.01) -> None:
        super().__init__()
        bits = check.integer("bits", bits, low=2, high=8)
        averaging = check.number("averaging", averaging, above=0, high=1)
        for name, layer in compressible(network, "quantised").items():
            own: dict[type, type] = {nn.Conv2d: QuantizedConv2d, nn.Linear: QuantizedLinear}
            if type(layer) not in own:
                raise ConfigError(
                    f"Layer {name!r} is a {type(layer).__name__}, which cannot be quantised, only nn.Conv2d and "
                    "nn.Linear themselves. To prune as well, put the pruning around the quantisation."
                )
            layer.input = MovingRange(layer.weight, bits, averaging)
            layer.__class__ = own[type(layer)]  # weights, names and settings stay as they are
        self.network = network

    def forward(self, image: Tensor) -> Any:
        return self.network(image)


class MovingRange(nn.Module):
    """Rounds a layer's input to `bits` bits within a range that training follows with a moving average.

    The range always holds 0, which is so an exact level (padding, ReLU). Until a training step has shown one, the input
    passes as it is.
    """

    low: Tensor
    high: Tensor

    def __init__(self, like: Tensor, bits: int, averaging: float) -> None:
        super().__init__()
        self.bits = bits
        self.averaging = averaging
        self.register_buffer("low", like.new_zeros(()))
        self.register_buffer("high", like.new_zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return quantized_activation(x, self.low, self.high, self.bits, self.averaging if self.training else None)


class QuantizedConv2d(nn.Conv2d):
    """A convolution of its rounded input with its rounded weight."""

    input: MovingRange

    def forward(self, x: Tensor) -> Tensor:
        weight = quantized_weight(self.weight, self.input.bits)
        rounded: Tensor = self._conv_forward(self.input(x), weight, self.bias)
        return rounded


class QuantizedLinear(nn.Linear):
    """A linear layer on its rounded input with its rounded weight."""

    input: MovingRange

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.input(x), quantized_weight(self.weight, self.input.bits), self.bias)


def quantized_weight(weight: Tensor, bits: int) -> Tensor:
    """Round a weight (C_out, ...) to whole multiples of a scale per output channel, its largest magnitude the last."""
    highest = 2 ** (bits - 1) - 1  # as many levels below 0 as above
    largest = weight.detach().flatten(1).abs().amax(1).view(-1, *[1] * (weight.ndim - 1))
    return _rounded(weight, _scale(largest, highest), torch.zeros_like(largest), -highest, highest)


def quantized_activation(x: Tensor, low: Tensor, high: Tensor, bits: int, averaging: float | None) -> Tensor:
    """Round activations to 2^bits levels between `low` and `high`, which follow them first if `averaging` is given."""
    x = x.to(low.dtype)  # inside autocast they are float32 again
    if averaging is not None:
        with torch.no_grad():
            # over the images of all processes
            smallest, greatest = torch.aminmax(x)
            highest, lowest = largest(torch.stack([greatest, -smallest]))
            renewed = torch.where(high > low, averaging, 1.0)  # the first range is taken over
            low.lerp_((-lowest).clamp(max=0), renewed.to(low))
            high.lerp_(highest.clamp(min=0), renewed.to(high))
    scale = _scale(high - low, 2**bits - 1)
    return torch.where(high > low, _rounded(x, scale, (-low / scale).round(), 0, 2**bits - 1), x)


def _scale(width: Tensor, levels: int) -> Tensor:
    return width.clamp_min(torch.finfo(width.dtype).tiny * levels) / levels


def _rounded(x: Tensor, scale: Tensor, zero: Tensor, lowest: int, highest: int) -> Tensor:
    """Round to the levels `scale * (n - zero)`, n from `lowest` to `highest`.

    The gradient passes straight through the rounding, and not where x rounds to beyond the levels: all as of
    `torch.fake_quantize_per_tensor_affine`, which meta tensors do not have.
    """
    level = (x / scale + zero).clamp(lowest - 0.5, highest + 0.5)
    return (level + (level.round().clamp(lowest, highest) - level).detach() - zero) * scale
