"""Batch relations under several processes: every process sees the whole batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kd.collectives import processes, total


def gathered(tensor: Tensor) -> Tensor:
    """Return the rows of all processes, (B, ...) -> (B_0 + B_1 + ..., ...), in the order of their ranks.

    With one process, the tensor itself. The gradient of every process's loss flows back to the process that a row came
    from. If each process computes the same loss of the gathered rows, data-parallel training, which averages gradients
    over processes, then has the gradient of one process with the whole batch. Batches may differ in length.
    """
    if processes() == 1:
        return tensor
    gathered_rows: Tensor = _Gather.apply(tensor)
    return gathered_rows


class _Gather(torch.autograd.Function):
    """All processes' rows; backward sums the gradients of all processes' losses and keeps this process's rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        own = torch.tensor([len(tensor)], device=tensor.device)
        counts = [torch.zeros_like(own) for _ in range(processes())]
        dist.all_gather(counts, own)
        ctx.lengths = [int(count) for count in counts]
        padded = tensor.new_zeros(max(ctx.lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in ctx.lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, ctx.lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = total(gradients[0].contiguous())
        start = sum(ctx.lengths[: dist.get_rank()])
        return summed[start : start + ctx.lengths[dist.get_rank()]]
