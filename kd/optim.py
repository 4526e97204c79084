"""Learning-rate schedules that know the length of the training, stepped after every step, and the weight constraint."""

import inspect
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from kd.check import integer, number
from kd.errors import ConfigError

Schedule = Callable[[Optimizer, int, int], LRScheduler]  # (optimizer, steps_per_epoch, epochs)


def with_max_norm(
    params: Iterable[Tensor], optimizer: Callable[[Iterable[Tensor]], Optimizer], max_norm: float
) -> Optimizer:
    """An optimiser that keeps the L2 norm of every unit's incoming weights at or below `max_norm`, step by step.

    The weight constraint of Hinton et al. 2012 (1207.0580), there on the squared length. It holds for parameters of two
    and more dimensions, of which the first counts the units; biases are free. Raises `ConfigError` unless max_norm > 0.
    """
    number("optim.optimizer.max_norm", max_norm, above=0)
    made = optimizer(params)

    def constrain(stepped: Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for group in stepped.param_groups:
                for weight in group["params"]:
                    if weight.ndim > 1:
                        lengths = torch.linalg.vector_norm(weight.flatten(1), dim=1)
                        scale = (max_norm / lengths).clamp(max=1)  # of a row of zeros: 1
                        weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))

    made.register_step_post_hook(constrain)
    return made


def refuse_several_losses(optimizer: Optimizer) -> None:
    """Raise `ConfigError` for an optimiser such as LBFGS, whose step wants to compute the loss several times itself."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError(
            f"{type(optimizer).__name__} computes the loss several times in a step; a training here does once. Choose "
            "another optimiser, e.g. optim=adamw."
        )


def constant(optimizer: Optimizer, steps_per_epoch: int, epochs: int) -> LRScheduler:
    """The learning rate stays as it is."""
    return LambdaLR(optimizer, lambda _: 1.0)


def cosine(optimizer: Optimizer, steps_per_epoch: int, epochs: int, *, warmup_epochs: int = 0) -> LRScheduler:
    """Half a cosine to zero (SGDR, 1608.03983, without restarts), after a linear warm-up.

    Raises `ConfigError` unless 0 <= warmup_epochs < epochs.
    """
    warmup = integer("optim.schedule.warmup_epochs", warmup_epochs, high=epochs - 1) * steps_per_epoch
    total = steps_per_epoch * epochs

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2

    return LambdaLR(optimizer, factor)


def multistep(
    optimizer: Optimizer, steps_per_epoch: int, epochs: int, *, milestones: list[float], gamma: float = 0.1
) -> LRScheduler:
    """The learning rate times `gamma` at each milestone, a fraction of the training.

    Raises `ConfigError` unless the milestones rise within (0, 1] and gamma is in (0, 1].
    """
    number("optim.schedule.gamma", gamma, above=0, high=1)
    for milestone in milestones:
        number("optim.schedule.milestones", milestone, above=0, high=1)
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        raise ConfigError(f"Expected `optim.schedule.milestones` to rise, but got {milestones}.")
    # 0.55 * 100 is 55.000000000000007: a rounding error must not delay a milestone by a step
    steps = [round(milestone * steps_per_epoch * epochs, 6) for milestone in milestones]
    return LambdaLR(optimizer, lambda step: float(gamma ** sum(step >= milestone for milestone in steps)))


def one_cycle(optimizer: Optimizer, steps_per_epoch: int, epochs: int, *, warmup: float = 0.3) -> LRScheduler:
    """Up to the optimiser's learning rate during the share `warmup` of the training, and down to nearly zero.

    Raises `ConfigError` unless warmup is in [0, 1).
    """
    if number("optim.schedule.warmup", warmup, low=0, high=1) == 1:
        raise ConfigError(f"Expected `optim.schedule.warmup` to leave a share of the training, but got {warmup}.")
    peaks = [group["lr"] for group in optimizer.param_groups]
    total = steps_per_epoch * epochs
    share = 0.0 if warmup * total == 1 else warmup  # torch divides by the steps after the first one that go up
    return OneCycleLR(optimizer, max_lr=peaks, total_steps=total, pct_start=share)
