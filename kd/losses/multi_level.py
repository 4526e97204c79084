"""Multi-level logit distillation: predictions are aligned by sample, between samples and between classes."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kd.check import number
from kd.errors import ConfigError
from kd.losses._gather import gathered
from kd.losses._numeric import matched_logits, outside_autocast, required
from kd.losses.kd import kd_loss
from kd.losses.term import Term
from kd.types import Batch, Output

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


@outside_autocast
def multi_level_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperatures: Sequence[float] = TEMPERATURES
) -> Tensor:
    """Sum over the temperatures T of three alignments of P = softmax(z / T), (B, C):

        T^2 mean_b KL(P_t[b] || P_s[b]) + ||P_s P_s' - P_t P_t'||_F^2 / B + ||P_s' P_s - P_t' P_t||_F^2 / C

    (' is the transpose): of the samples' predictions, of the relations between samples and of those between classes.
    Jin, Wang and Lin 2023, "Multi-Level Logit Distillation" (CVPR). The losses of the temperatures are added, not
    averaged, so that the loss grows with their number.

    The divergence is averaged over the batch and has Hinton's factor T^2, as in the authors' code; the Gram matrices
    have no such factor there either. That code also aligns a second, strongly augmented view of every image, and
    multiplies parts of the sum by a mask of the teacher's least confident images or classes; as it does so after the
    reduction to a scalar, the mask is a constant factor. Here there is one view and no mask.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.
        temperatures: at least one, each above 0.

    Raises:
        ConfigError: the shapes differ, or `temperatures` is not what it should be.
    """
    temperatures = _checked(temperatures)
    student, teacher = matched_logits(student_logits, teacher_logits)
    losses = [_at(student, teacher, temperature) for temperature in temperatures]
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def _at(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    samples, classes = student.shape
    p_s, p_t = F.softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1)
    between_samples = (p_s @ p_s.T - p_t @ p_t.T).square().sum() / samples
    between_classes = (p_s.T @ p_s - p_t.T @ p_t).square().sum() / classes
    return kd_loss(student, teacher, temperature=temperature) + between_samples + between_classes


def _checked(temperatures: Any) -> tuple[float, ...]:
    """Return the temperatures as a tuple, or raise `ConfigError`."""
    if isinstance(temperatures, str) or not isinstance(temperatures, Sequence) or not temperatures:
        raise ConfigError(f"Expected `temperatures` to list at least one temperature, but got {temperatures!r}.")
    return tuple(number(f"temperatures[{i}]", value, above=0.0) for i, value in enumerate(temperatures))


class MultiLevel(Term):
    """`multi_level_loss` of the student's and the teacher's logits."""

    def __init__(self, temperatures: Sequence[float] = TEMPERATURES) -> None:
        super().__init__()
        self.temperatures = _checked(temperatures)
        listed = ", ".join(f"{temperature:g}" for temperature in self.temperatures)
        self.symbol = f"sum over T = {listed} of (T^2 KL + batch Gram + class Gram)"

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return multi_level_loss(
            gathered(student.logits), gathered(required(teacher).logits), temperatures=self.temperatures
        )
