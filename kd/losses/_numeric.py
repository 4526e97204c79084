"""What every loss does to its arguments before it computes: check the shapes, and leave half precision."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor

from kd.errors import ConfigError
from kd.types import Output

P = ParamSpec("P")


def outside_autocast(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Make a loss compute in the precision of its tensors: autocast would send its matrix products to half precision.

    The loss still has to lift half-precision arguments itself, with `full_precision`.
    """

    @functools.wraps(loss)
    def exact(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.autocast(_device_type(args), enabled=False):
            return loss(*args, **kwargs)

    return exact


def _device_type(values: Sequence[Any]) -> str:
    """Return the type of the first tensor's device, also inside lists."""
    first = values[0]
    return first.device.type if isinstance(first, Tensor) else _device_type(first)


def full_precision(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def matched_logits(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return both logits (B, C) in full precision, the teacher's detached.

    Raises `ConfigError` unless both have one shape (B, C).
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ConfigError(
            "Expected the logits of student and teacher to have one shape (batch, classes), "
            f"but got student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)}."
        )
    return full_precision(student_logits), full_precision(teacher_logits.detach())


def matched_features(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two features of one shape in full precision, the teacher's detached; else raise `ConfigError`."""
    if student.shape != teacher.shape:
        raise ConfigError(
            "Expected the features of student and teacher to have one shape, "
            f"but got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}."
        )
    return full_precision(student), full_precision(teacher.detach())


def matched_batches(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (B, ...) as rows (B, D_s) and (B, D_t) in full precision, the teacher's detached.

    Raises `ConfigError` unless both hold the same number of images.
    """
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise ConfigError(
            "Expected features (batch, ...) of as many images from student and teacher, "
            f"but got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}."
        )
    return full_precision(student).flatten(1), full_precision(teacher.detach()).flatten(1)


def stages(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the features of each stage in pairs, or raise `ConfigError`; a single tensor is one stage."""
    ours = [student] if isinstance(student, Tensor) else list(student)
    theirs = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    if not ours or len(ours) != len(theirs):
        raise ConfigError(
            f"Expected as many features of the student as of the teacher, but got {len(ours)} and {len(theirs)}."
        )
    return list(zip(ours, theirs, strict=True))


def labelled_logits(student_logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (B, C) in full precision, and the labels (B,) as int64.

    Raises `ConfigError` unless the logits are (B, C) and the target holds B integers. The labels' range is not looked
    at: that would make a GPU wait at every step.
    """
    if student_logits.ndim != 2 or target.shape != student_logits.shape[:1]:
        raise ConfigError(
            "Expected logits (batch, classes) and a target (batch,), "
            f"but got logits {tuple(student_logits.shape)} and target {tuple(target.shape)}."
        )
    if target.is_floating_point() or target.dtype == torch.bool:
        raise ConfigError(f"Expected the target to hold class numbers, but got values of type {target.dtype}.")
    return full_precision(student_logits), target.long()


def required(teacher: Output | None) -> Output:
    """Return the teacher's output, or raise `ConfigError` if there is none."""
    if teacher is None:
        raise ConfigError("This loss term learns from a teacher, but none was given.")
    return teacher


@functools.lru_cache(maxsize=256)
def on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as a tensor (K,), copied to its device once: a copy at every step would make a GPU wait."""
    return torch.tensor(values, device=device)
