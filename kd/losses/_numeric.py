"""What every loss does to its arguments before it computes: check the shapes, and leave half precision."""

import torch
from torch import Tensor

from kd.errors import ConfigError
from kd.types import Output


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
