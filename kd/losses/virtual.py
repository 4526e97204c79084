"""Teacher-free distillation from a hand-made teacher that is always right (Tf-KD_reg)."""

import math
from typing import Any

import torch
from torch import Tensor

from kd.check import integer, number
from kd.errors import ConfigError
from kd.losses._numeric import labelled_logits
from kd.losses.kd import kd_loss
from kd.losses.term import Term
from kd.types import Batch, Output


def _probability(value: Any, low: float) -> float:
    """Return `correct_probability`, or raise `ConfigError` unless it is a number in the open interval (low, 1)."""
    if not low < number("correct_probability", value, low=0.0, high=1.0) < 1.0:
        raise ConfigError(f"Expected `correct_probability` to be above {low:g} and below 1, but got {value!r}.")
    return float(value)


def virtual_teacher_logits(
    target: Tensor, *, num_classes: int, correct_probability: float = 0.99, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Logits of the hand-made teacher, (B, K): `log p^d`.

    `p^d_k = a` for the label and `(1 - a) / (K - 1)` for every other class, with K = `num_classes` and a =
    `correct_probability` (Yuan et al. 2020, 1909.11723, equation 8; they always set a >= 0.9).

    Args:
        target: (B,), class numbers.
        num_classes: K, at least 2.
        correct_probability: a, above 1/K and below 1, so that the label is the likeliest class.
        dtype: the logits' type.

    Raises:
        ConfigError: `num_classes` or `correct_probability` is not in its range.
    """
    num_classes = integer("num_classes", num_classes, low=2)
    correct = _probability(correct_probability, 1.0 / num_classes)
    rest = math.log1p(-correct) - math.log(num_classes - 1)
    logits = torch.full((len(target), num_classes), rest, dtype=dtype, device=target.device)
    return logits.scatter_(1, target.long().unsqueeze(1), math.log(correct))


def virtual_teacher_loss(
    student_logits: Tensor, target: Tensor, *, temperature: float = 20.0, correct_probability: float = 0.99
) -> Tensor:
    """Tempered divergence from the hand-made teacher, `T^2 mean_b KL(p^d_T || softmax(z_s / T))`.

    Yuan et al. 2020 (1909.11723), equation 9, with the factor T^2 of `kd_loss`. `p^d_T = softmax(log p^d / T)`: p^d
    raised to the power 1/T and normalised again, which is what a temperature does to any distribution.

    The authors' published code departs from the paper, which is followed here. It softens with `softmax(p^d / T)`,
    probabilities taken as logits, so that the target is all but uniform (0.105 on the label of 10 classes at T = 20,
    where the power gives 0.135); it leaves the student untempered; and it takes `KLDivLoss`'s mean over batch and
    classes, times a free multiplier.

    Args:
        student_logits: (B, K).
        target: (B,), class numbers.
        temperature: T > 0; the paper sets T >= 20.
        correct_probability: above 1/K and below 1.

    Raises:
        ConfigError: a shape does not fit, or `temperature` or `correct_probability` is not in its range.
    """
    student, target = labelled_logits(student_logits, target)
    teacher = virtual_teacher_logits(
        target, num_classes=student.shape[1], correct_probability=correct_probability, dtype=student.dtype
    )
    return kd_loss(student, teacher, temperature=temperature)


class VirtualTeacher(Term):
    """`virtual_teacher_loss` of the student's logits and the batch's labels; the number of classes is the student's."""

    symbol = "T^2 KL(virtual)"
    transfers = "labels"
    needs_teacher = False

    def __init__(self, temperature: float = 20.0, correct_probability: float = 0.99) -> None:
        super().__init__()
        self.temperature = number("temperature", temperature, above=0.0)
        self.correct_probability = _probability(correct_probability, 0.0)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return virtual_teacher_loss(
            student.logits,
            batch.target,
            temperature=self.temperature,
            correct_probability=self.correct_probability,
        )
