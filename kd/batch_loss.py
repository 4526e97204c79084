"""The loss of a batch: teacher, student and objective as one function, as it is or compiled."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kd.losses.objective import Objective
from kd.taps import Tapped
from kd.teachers import Teacher
from kd.types import Batch, Output

NOTHING = Output(torch.empty(0), {})  # the student's output where no term looks at it
COMPARED_STEPS = 20
Losses = tuple[Tensor, dict[str, Tensor]]


class BatchLoss:
    """Called with a batch, returns the objective's value and that of every term.

    compiling: "off"; "on", compiled at once; "auto", on a GPU whichever is faster in a comparison on the first batch,
        elsewhere off: on a CPU compiled convolutions are the slower ones. The choice is told to `say`, and kept in
        checkpoints, since compiled code rounds differently.
    """

    def __init__(
        self, student: Tapped, teacher: Teacher, objective: Objective, compiling: str, say: Callable[[str], None]
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.objective = objective
        self._needs_student = objective.needs_student
        self.compiling = compiling
        self.say = say
        self._run: Callable[[Batch], Losses] = self._first
        self.is_channels_last = False

    def __call__(self, batch: Batch) -> Losses:
        if self.is_channels_last:  # here, and not in `_laid_out`: every call in a step counts
            batch = batch._replace(image=batch.image.contiguous(memory_format=torch.channels_last))
        return self._run(batch)

    def _laid_out(self, batch: Batch) -> Batch:
        layout = torch.channels_last if self.is_channels_last else torch.contiguous_format
        return batch._replace(image=batch.image.contiguous(memory_format=layout))

    def state_dict(self) -> dict[str, Any]:
        return {"compiling": self.compiling}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.compiling == "auto":  # what the user says now stands
            self.compiling = state["compiling"]

    def eager(self, batch: Batch) -> Losses:
        teacher = self.teacher(batch)
        student = self.student(batch.image) if self._needs_student else NOTHING
        losses: Losses = self.objective(student, teacher, batch)
        return losses

    def _first(self, batch: Batch) -> Losses:
        """Get ready for a training on the device and in the precision of its first batch, and begin with it."""
        with torch.no_grad():
            self.is_channels_last = self.teacher.hurry(batch.image.contiguous()) and self.is_channels_last
        batch = self._laid_out(batch)
        if self.compiling == "auto" and not batch.image.is_cuda:
            self.compiling = "off"
        if self.compiling != "off":
            torch.compiler.reset()  # what was compiled before, for another network, changes what is compiled now
        if self.compiling == "auto":
            self.compiling = "on" if self._is_faster_compiled(batch) else "off"
        self._run = self._compiled() if self.compiling == "on" else self.eager
        return self(batch)

    def _compiled(self) -> Callable[[Batch], Losses]:
        """One graph of all three: two graphs that hand over memory of CUDA graphs fail."""
        on_gpu = next(self.student.parameters()).is_cuda
        compiled: Callable[[Batch], Losses] = torch.compile(self.eager, mode="reduce-overhead" if on_gpu else "default")
        return compiled

    def _is_faster_compiled(self, batch: Batch) -> bool:
        """Time forward and backward both ways, and leave networks, gradients and random numbers as they were."""
        modules = torch.nn.ModuleList([self.student, self.objective])
        buffers = [(buffer, buffer.clone()) for buffer in modules.buffers()]
        compiled = self._compiled()
        started = time.perf_counter()
        with torch.random.fork_rng():
            try:
                self._seconds(compiled, batch)
                self._seconds(compiled, batch)  # CUDA graphs are recorded in the second call
                compile_s = time.perf_counter() - started
                times = [
                    (self._seconds(self.eager, batch), self._seconds(compiled, batch)) for _ in range(COMPARED_STEPS)
                ]
            except Exception as error:  # the compiler fails in as many ways as networks can be written
                self.say(f"not compiled: {type(error).__name__}: {str(error).splitlines()[0]}")
                return False
            finally:
                with torch.no_grad():
                    for buffer, value in buffers:
                        buffer.copy_(value)
        eager_s, compiled_s = (statistics.median(side) for side in zip(*times, strict=True))
        faster: bool = compiled_s < eager_s
        self.say(
            f"{'compiled' if faster else 'not compiled'}: {1e3 * compiled_s:.2f} ms forward and backward compiled, "
            f"{1e3 * eager_s:.2f} ms as it is ({compile_s:.0f} s to compile)"
        )
        return faster

    def _seconds(self, run: Callable[[Batch], Losses], batch: Batch) -> float:
        started = time.perf_counter()
        loss, _ = run(batch)
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward()  # type: ignore[no-untyped-call]
        if loss.is_cuda:
            torch.cuda.synchronize(loss.device)
        seconds = time.perf_counter() - started
        for part in (self.student, self.objective):
            part.zero_grad()  # a CUDA graph's gradients cannot be added to: the next call writes over them
        return seconds
