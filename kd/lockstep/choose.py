"""Which way to train a group is faster here: both are tried on a real batch, with copies of the students."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kd.lockstep.ways import Learner, Looped, Stacked, Way, draws, restore_draws, why_not_stacked
from kd.types import Batch, Output

WAYS = ("auto", "stacked", "looped")
STEPS, SECONDS = 10, 4.0  # of each way, and of both, that are timed; whichever is over first
#: how far the gradients of both ways may differ, relative to their norm: more is no rounding error
AGREEMENT, MIXED_AGREEMENT = 1e-3, 0.1


@dataclass
class Choice:
    """How a group is trained, the seconds of a step in each way that was timed, and why one was out of the question."""

    way: str
    seconds: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    def describe(self) -> str:
        """`stacked (looped: 11.8 ms, stacked: 3.1 ms a step)`, or `looped (stacked is not possible: ...)`."""
        if self.reason:
            return f"{self.way} (stacking them is not possible: {self.reason})"
        times = ", ".join(f"{way}: {1000 * seconds:.1f} ms" for way, seconds in self.seconds.items())
        return f"{self.way} ({times} a step)" if times else self.way


def make(way: str, learners: Sequence[Learner]) -> list[Way]:
    """The learners in one way; those that cannot be stacked with another one are looped."""
    stacks = _stacks(learners) if way == "stacked" else []
    stacked = [learner for stack in stacks for learner in stack]
    looped = [learner for learner in learners if learner not in stacked]
    return [*map(Stacked, stacks), *([Looped(looped)] if looped else [])]


def _stacks(learners: Sequence[Learner]) -> list[list[Learner]]:
    """The learners that can be stacked, by kind, if there are several of a kind."""
    kinds: dict[str, list[Learner]] = {}
    for learner in learners:
        if not why_not_stacked(learner):
            kinds.setdefault(learner.kind, []).append(learner)
    return [same for same in kinds.values() if len(same) > 1]


def choose(learners: Sequence[Learner], batch: Batch, teacher: Output | None, asked: str = "auto") -> Choice:
    """The way that is asked for, if it is possible, or else the faster one.

    Both are timed; nothing that happens here leaves a trace in the learners or in the random draws.
    """
    if asked == "looped":
        return Choice("looped")
    if reason := cannot_stack(learners):
        return Choice("looped", reason=reason)
    if asked == "stacked":
        return Choice("stacked")
    before = draws(batch.image.device)
    try:
        looped = Trial("looped", learners, batch, teacher)
        try:
            stacked = Trial("stacked", learners, batch, teacher)
        except Exception as error:  # what vmap cannot do has as many names as there are operations
            return Choice("looped", reason=_first_line(error))
        mixed = torch.is_autocast_enabled(batch.image.device.type)
        if (apart := _difference(looped.made, stacked.made)) > (MIXED_AGREEMENT if mixed else AGREEMENT):
            return Choice("looped", reason=f"it gives other gradients, {apart:.1e} apart")
        times = _times([stacked, looped])
    finally:
        restore_draws(before, batch.image.device)
    return Choice(min(times, key=lambda way: times[way]), times)


class Trial:
    """Copies of the learners, trained in one way on one batch. `made`: what the first step has made of each."""

    def __init__(self, way: str, learners: Sequence[Learner], batch: Batch, teacher: Output | None) -> None:
        self.way, self.batch, self.teacher = way, batch, teacher
        copies = [learner.duplicate() for learner in learners]
        self.ways = make(way, copies)
        self.step_s()  # also what is done only once
        self.made = [_state(self.ways, learner) for learner in copies]

    def step_s(self) -> float:
        """Make a step, and return its seconds."""
        device, started = self.batch.image.device, time.perf_counter()
        for way in self.ways:
            way.step(self.batch, self.teacher)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        torch.clear_autocast_cache()  # it would hold the weights of before the step as long as the trial lasts
        return time.perf_counter() - started


def _times(trials: Sequence[Trial]) -> dict[str, float]:
    """The seconds of each trial's fastest step; in turns, so that a machine that is busy for a while slows all."""
    seconds: dict[str, list[float]] = {trial.way: [] for trial in trials}
    while len(seconds[trials[0].way]) < STEPS and sum(map(sum, seconds.values())) < SECONDS:
        for trial in trials:
            seconds[trial.way].append(trial.step_s())
    return {way: min(found) for way, found in seconds.items()}


def cannot_stack(learners: Sequence[Learner]) -> str:
    """Why no two of these learners can be stacked, as far as can be said before it is tried; empty if some can."""
    if _stacks(learners):
        return ""
    return next(filter(None, map(why_not_stacked, learners)), "no two have the same optimiser settings and network")


def _state(ways: Sequence[Way], learner: Learner) -> Tensor:
    """What one step has made of a learner: its gradients and its buffers."""
    way = next(way for way in ways if learner in way.learners)
    if isinstance(way, Stacked):
        place = way.learners.index(learner)
        gradients = [None if p.grad is None else p.grad[place] for p in way.trained]
    else:
        gradients = [p.grad for p in learner.student.parameters() if p.requires_grad]
    parts = [part for part in [*gradients, *learner.student.buffers()] if part is not None]
    return torch.cat([part.detach().flatten().float() for part in parts]).clone()


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest distance between two vectors of a learner, relative to the length of the first.

    A NaN in both is no difference: a training may begin with one, and is told so later.
    """
    largest = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return float("inf")
        one, other = one.nan_to_num(), other.nan_to_num()
        largest = max(largest, float((one - other).norm() / one.norm().clamp(min=1e-12)))
    return largest


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
