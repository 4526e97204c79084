"""One target made of both: a weighted average of the teacher's probabilities and the label."""

import torch.nn.functional as F
from torch import Tensor

from kd.check import number
from kd.losses._numeric import labelled_logits, matched_logits, required
from kd.losses.term import Term
from kd.types import Batch, Output


def mixed_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, *, temperature: float = 4.0, alpha: float = 0.5
) -> Tensor:
    """Tempered cross-entropy with the averaged target, `-mean_b sum_c q_c log softmax(z_s / T)_c`.

    q = alpha softmax(z_t / T) + (1 - alpha) onehot(y): the "weighted average" variant of distillation (Hinton et al.
    2015, 1503.02531, section 2, average two losses instead). The student is tempered for the label's part too, and
    there is no factor T^2.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.
        target: (B,), class numbers.
        temperature: T > 0.
        alpha: the teacher's share of the target, in [0, 1].

    Raises:
        ConfigError: a shape does not fit, or `temperature` or `alpha` is not in its range.
    """
    temperature = number("temperature", temperature, above=0.0)
    alpha = number("alpha", alpha, low=0.0, high=1.0)
    student, teacher = matched_logits(student_logits, teacher_logits)
    _, target = labelled_logits(student_logits, target)
    soft = F.softmax(teacher / temperature, dim=1)
    hard = F.one_hot(target, soft.shape[1]).to(soft)
    mixed = alpha * soft + (1.0 - alpha) * hard
    return F.cross_entropy(student / temperature, mixed)


class MixedTarget(Term):
    """`mixed_target_loss` of the student's and the teacher's logits and the batch's labels."""

    def __init__(self, temperature: float = 4.0, alpha: float = 0.5) -> None:
        super().__init__()
        self.temperature = number("temperature", temperature, above=0.0)
        self.alpha = number("alpha", alpha, low=0.0, high=1.0)
        self.symbol = f"CE(mixed target, alpha {self.alpha:g})"

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return mixed_target_loss(
            student.logits,
            required(teacher).logits,
            batch.target,
            temperature=self.temperature,
            alpha=self.alpha,
        )
