"""Sums over the processes of a data-parallel training, one of them with a gradient; a single process has its own."""

import functools
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


def everyones(value: Any) -> list[Any]:
    """Every process's value, by rank: plain values and tensors on the CPU. Every process calls this."""
    if processes() == 1:
        return [value]
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, value, group=_on_cpu())
    return found


def loudest(values: list[int]) -> list[int]:
    """The largest of every process's values at each place. Unlike `largest`, no GPU waits for it."""
    if processes() == 1:
        return values
    found = torch.tensor(values)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_on_cpu())
    result: list[int] = found.tolist()
    return result


@functools.cache  # the processes of a run are connected once
def _on_cpu() -> Any:
    """A group of all processes that talks from CPU to CPU. The first call makes it: every process takes part."""
    return dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


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
