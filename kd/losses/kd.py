"""Knowledge distillation: the student matches the teacher's tempered probabilities."""

from collections.abc import Sequence
from typing import Self

import torch.nn.functional as F
from torch import Tensor

from kd.check import number
from kd.losses._numeric import matched_logits, on_device, required
from kd.losses.term import Term
from kd.types import Batch, Output


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Tempered divergence from the teacher, `T^2 mean_b KL(softmax(z_t / T) || softmax(z_s / T))`.

    Hinton, Vinyals and Dean 2015 (1503.02531), section 2. The gradient in z_s is `T (softmax(z_s / T) - softmax(z_t /
    T)) / B`; the factor T^2 is what keeps its size when T changes. The paper writes the cross-entropy with the soft
    targets, which has the same gradient; the divergence is 0 where student and teacher agree.

    The divergence is summed over the classes and averaged over the batch. `torch.nn.KLDivLoss()` averages over both,
    which makes it C times too small.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.
        temperature: T > 0.

    Raises:
        ConfigError: the shapes differ, or `temperature` is not in its range.
    """
    temperature = number("temperature", temperature, above=0.0)
    student, teacher = matched_logits(student_logits, teacher_logits)
    log_p_student = F.log_softmax(student / temperature, dim=1)
    log_p_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True)


class KD(Term):
    """`kd_loss` of the student's and the teacher's logits."""

    symbol = "T^2 KL"

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = number("temperature", temperature, above=0.0)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return kd_loss(student.logits, required(teacher).logits, temperature=self.temperature)

    @classmethod
    def joint(cls, terms: Sequence[Self], logits: Tensor, teacher: Output | None, batch: Batch) -> Tensor | None:
        temperature = on_device(tuple(term.temperature for term in terms), logits.device).view(-1, 1, 1)
        rows, targets = matched_logits(logits.flatten(0, 1), required(teacher).logits.repeat(len(terms), 1))
        log_p_student = F.log_softmax(rows.view(logits.shape) / temperature, dim=2)
        log_p_teacher = F.log_softmax(targets.view(logits.shape) / temperature, dim=2)
        divergence = F.kl_div(log_p_student, log_p_teacher, reduction="none", log_target=True).sum((1, 2))
        return temperature.view(-1) ** 2 * divergence / logits.shape[1]
