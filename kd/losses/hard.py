"""Cross-entropy with the labels: the baseline's loss, and the hard-target part of most methods."""

from collections.abc import Sequence
from typing import Self

import torch.nn.functional as F
from torch import Tensor

from kd.check import number
from kd.losses._numeric import labelled_logits
from kd.losses.term import Term
from kd.types import Batch, Output


def hard_target_loss(student_logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy with the labels, `-mean_b sum_c q_c log softmax(z_s)_c`.

    q = (1 - e) onehot(y) + e / C with e = `label_smoothing` (Szegedy et al. 2016, 1512.00567, section 7).

    Args:
        student_logits: (B, C).
        target: (B,), class numbers.
        label_smoothing: in [0, 1]; 0 gives the plain labels.

    Raises:
        ConfigError: a shape does not fit, or `label_smoothing` is not in its range.
    """
    label_smoothing = number("label_smoothing", label_smoothing, low=0.0, high=1.0)
    student, target = labelled_logits(student_logits, target)
    return F.cross_entropy(student, target, label_smoothing=label_smoothing)


class HardTarget(Term):
    """`hard_target_loss` of the student's logits and the batch's labels."""

    symbol = "CE"
    transfers = "labels"
    needs_teacher = False

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = number("label_smoothing", label_smoothing, low=0.0, high=1.0)
        if self.label_smoothing > 0:
            self.symbol = f"CE(smoothing {self.label_smoothing:g})"

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return hard_target_loss(student.logits, batch.target, label_smoothing=self.label_smoothing)

    @classmethod
    def joint(cls, terms: Sequence[Self], logits: Tensor, teacher: Output | None, batch: Batch) -> Tensor | None:
        smoothing = {term.label_smoothing for term in terms}
        if len(smoothing) > 1:
            return None
        rows, target = labelled_logits(logits.flatten(0, 1), batch.target.repeat(len(terms)))
        losses = F.cross_entropy(rows, target, label_smoothing=smoothing.pop(), reduction="none")
        return losses.view(logits.shape[:2]).mean(1)
