"""Sides measured in turn, in one process: each round all of them do the same number of steps.

The machine's speed changes from one second to the next; what is compared is therefore always of one round, and what is
quoted the median of the rounds' ratios, with the smallest and the largest.
"""

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

Work = Callable[[int], None]  # does so many steps
Table = dict[str, dict[str, float]]  # by side: milliseconds of a step, and how many times the base's they are
KD = "kd"


@dataclass
class Clock:
    """Seconds of the processor (all threads) and on the clock, of each side in each round."""

    cpu: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)

    def add(self, side: str, started: tuple[float, float]) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.cpu.setdefault(side, []).append(time.process_time() - started[0])
        self.wall.setdefault(side, []).append(time.perf_counter() - started[1])

    def time(self, side: str, work: Work, steps: int) -> None:
        started = now()
        work(steps)
        self.add(side, started)

    def ratios(self, side: str, over: str, *, wall: bool = False) -> list[float]:
        """How many times as long `side` took as `over`, round by round, in ascending order."""
        times = self.wall if wall else self.cpu
        return sorted(a / b for a, b in zip(times[side], times[over], strict=True))


class Rounds(Callback):
    """Hears every step of a training of kd's, and after each round of `steps` lets the other sides do as many.

    The first round warms all sides up and is not counted. After `rounds` more the training's data must be at an end.
    """

    def __init__(self, others: Mapping[str, Work], *, steps: int, rounds: int, per_call: int = 1) -> None:
        self.others, self.steps, self.rounds, self.per_call = others, steps, rounds, per_call
        self.clock = Clock()
        self._done = 0
        self._seen = 0  # steps of this round

    @property
    def total(self) -> int:
        """How many steps the training has to have."""
        return self.steps * (self.rounds + 1)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self._started = now()

    def on_train_batch_end(self, *_: Any) -> None:
        self._seen += self.per_call
        if self._seen < self.steps:
            return
        assert self._seen == self.steps, "a round is a whole number of Lightning's batches"
        self._seen = 0
        if self._done:
            self.clock.add(KD, self._started)
        for name, work in self.others.items():
            if self._done:
                self.clock.time(name, work, self.steps)
            else:
                work(self.steps)
        self._done += 1
        self._started = now()


def now() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time(), time.perf_counter()


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):6.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def show(title: str, clock: Clock, steps: int, *, base: str = KD) -> Table:
    """Print each side's milliseconds per step and its ratio over `base`, and return them."""
    print(f"\n{title}")
    print(f"  {'':<22}{'processor':>12}{'clock':>12}   over {base}: processor{'':>13}clock")
    table: Table = {}
    for side in clock.cpu:
        table[side] = row = {
            name: 1e3 * statistics.median(times[side]) / steps
            for name, times in (("processor_ms", clock.cpu), ("clock_ms", clock.wall))
        }
        line = f"  {side:<22}{row['processor_ms']:9.2f} ms{row['clock_ms']:9.2f} ms"
        if side != base:
            ratios, on_clock = clock.ratios(side, base), clock.ratios(side, base, wall=True)
            row |= {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
            row["clock_ratio"] = statistics.median(on_clock)
            line += f"   {spread(ratios):<34}{spread(on_clock)}"
        print(line, flush=True)
    return table


def setting(rounds: int, steps: int) -> str:
    """What a figure depends on, in a line."""
    return f"{machine()}, {rounds} rounds of {steps} steps, at most {peak_mib():,.0f} MiB of memory"


def forget_peak() -> None:
    """Let `peak_mib` count from now on, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib() -> float:
    """The most memory that the process has had, since `forget_peak`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def machine() -> str:
    cpu = f"cpu with {torch.backends.cpu.get_cpu_capability()} ({os.cpu_count()} cores)"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return (
        f"torch {torch.__version__}, lightning {lightning.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {device}, {torch.get_num_threads()} thread(s)"
    )
