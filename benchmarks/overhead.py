"""`python -m benchmarks.overhead`: what Lightning, the bar and the curves cost beside the bare loop of the same step.

On the MNIST pair, batch 64, in float32. Counted: Python function calls per step, which no busy machine changes. Timed:
kd's training against a loop that calls the same loss and the same optimiser itself and does nothing else.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.pairs import PAIRS, Training
from benchmarks.rounds import Rounds, Table, Work, setting, show
from kd import build
from kd.batch_loss import BatchLoss

PAIR, BATCH, STEPS, ROUNDS, COUNTED = PAIRS["mnist"], 64, 32, 9, 32
PER_CALL, TIMED, BARE = (1, 8, 16, 32), (1, 16), "bare loop"


class Counter:
    """Counts calls of functions, Python's and built-in ones, while it is switched on."""

    def __init__(self) -> None:
        self.calls = 0

    def switch(self, on: bool) -> None:
        sys.setprofile(self._hear if on else None)

    def _hear(self, _frame: Any, event: str, _argument: Any) -> None:
        if event in ("call", "c_call"):
            self.calls += 1


class Counted(Callback):
    """Counts the calls of each of a training's batches, once it is under way; its own few are among them."""

    def __init__(self) -> None:
        self.counter = Counter()
        self.counts: list[int] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.counts.append(self.counter.calls)
        self.counter.calls = 0
        if trainer.global_step >= COUNTED:
            self.counter.switch(True)

    def on_train_epoch_end(self, *_: Any) -> None:
        self.counter.switch(False)


def calls_of_kd(steps_per_call: int) -> float:
    """The median over the batches, by step: the bar's drawing, five times a second, comes on top for a few of them."""
    watcher = Counted()
    training(3 * max(COUNTED, 4 * steps_per_call), steps_per_call).run(watcher)
    return statistics.median(filter(None, watcher.counts)) / steps_per_call


def calls_of(work: Work) -> float:
    counter = Counter()
    work(COUNTED)
    with counting(counter):
        work(COUNTED)
    return counter.calls / COUNTED


@contextmanager
def counting(counter: Counter) -> Iterator[None]:
    counter.switch(True)
    try:
        yield
    finally:
        counter.switch(False)


def training(steps: int, steps_per_call: int = 1) -> Training:
    return Training(PAIR, BATCH, steps, "trainer.precision=32-true", f"trainer.steps_per_call={steps_per_call}")


def bare(same: Training) -> Work:
    """The same networks, objective, optimiser and batches in a loop without anything around it."""
    data, recipe = same.data, same.planned.student
    teacher = build.teacher_of(recipe, [same.network("teacher")], data)
    student, objective, _ = build.student(recipe, data, teacher)
    loss_of = BatchLoss(student, teacher, objective, "off", lambda _: None)
    objective.begin_epoch(0)
    make: Callable[..., torch.optim.Optimizer] = build.optimizer_and_schedule(recipe)[0]
    optimizer = make(student.parameters())
    batches = endless(data)

    def work(steps: int) -> None:
        for _ in range(steps):
            loss, _ = loss_of(next(batches))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return work


def endless(data: Any) -> Iterator[Any]:
    """Normalised batches from memory."""
    data.steps_per_call = 1
    batches = [data.on_device(batch, torch.device("cpu")) for batch in data.train_dataloader()]
    while True:
        yield from batches


def measure() -> dict[str, Table]:
    """Print calls and times; return them."""
    print("Python function calls per step (MNIST pair, bar and curves on)")
    calls = {"bare loop": calls_of(bare(training(STEPS)))}
    calls |= {f"steps_per_call={count}": calls_of_kd(count) for count in PER_CALL}
    for name, count in calls.items():
        print(f"  {name:<20}{count:7,.0f}")
    found: dict[str, Table] = {"calls": {name: {"calls": count} for name, count in calls.items()}}
    for per_call in TIMED:
        rounds = Rounds({BARE: bare(training(STEPS))}, steps=STEPS, rounds=ROUNDS, per_call=per_call)
        training(rounds.total, per_call).run(rounds)
        name = f"steps_per_call={per_call}"
        found[name] = show(f"MNIST 1200 to 800, batch {BATCH}, {name}", rounds.clock, STEPS, base=BARE)
    print(f"  {setting(ROUNDS, STEPS)}")
    return found


def main() -> None:
    torch.set_num_threads(1)
    measure()


if __name__ == "__main__":
    main()
