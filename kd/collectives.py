"""Sums over the processes of a data-parallel training, one of them with a gradient; a single process has its own."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes train together now."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(tensor: Tensor) -> Tensor:
    """The sum over the processes, elementwise; no gradient."""
    summed = tensor.detach().clone()
    if processes() > 1:
        dist.all_reduce(summed)
    return summed


def largest(tensor: Tensor) -> Tensor:
    """The largest value over the processes, elementwise; no gradient."""
    found = tensor.detach().clone()
    if processes() > 1:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found


def summed(tensor: Tensor) -> Tensor:
    """`total` with a gradient: that of the sum of all processes' losses."""
    if processes() == 1:
        return tensor
    result: Tensor = _Summed.apply(tensor)
    return result


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return total(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0])
