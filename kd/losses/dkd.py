"""Decoupled knowledge distillation: the divergence's parts for the label and for the other classes, weighted apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.check import number
from kd.errors import ConfigError
from kd.losses._numeric import labelled_logits, matched_logits, required
from kd.losses.term import Term
from kd.types import Batch, Output


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Weighted sum of the two parts of the tempered divergence, `T^2 mean_b (alpha TCKD + beta NCKD)`.

    With p = softmax(z / T) and the label y:

    - target-class part: `TCKD = KL((p^t_y, 1 - p^t_y) || (p^s_y, 1 - p^s_y))`;
    - non-target part: `NCKD = KL(q^t || q^s)`, q = softmax of `z / T` over the classes other than y.

    Zhao et al. 2022 (2203.08679), equation 7. With alpha = 1 and beta = 1 - p^t_y of each sample it would be `kd_loss`
    (equation 6): distillation weakens the second part for every sample the teacher is sure of.

    Everything is computed from log-probabilities. The authors' code takes the logarithm of `1 - p_y`, which is -inf for
    a confident network, and excludes the label from q by subtracting 1000 from its logit, which larger logits undo.

    Args:
        student_logits: (B, C), C >= 2.
        teacher_logits: (B, C); gets no gradient.
        target: (B,), class numbers.
        alpha: weight of the target-class part, at least 0; not the soft targets' share of `kd`.
        beta: weight of the non-target part, at least 0; the paper's best lies between 1 and 10, by teacher.
        temperature: T > 0.

    Raises:
        ConfigError: a shape does not fit, or a hyper-parameter is not in its range.
    """
    alpha = number("alpha", alpha, low=0.0)
    beta = number("beta", beta, low=0.0)
    temperature = number("temperature", temperature, above=0.0)
    student, teacher = matched_logits(student_logits, teacher_logits)
    _, target = labelled_logits(student_logits, target)
    if student.shape[1] < 2:
        raise ConfigError(f"Expected logits of at least 2 classes, but got {tuple(student.shape)}.")
    binary_s, others_s = _decoupled(student / temperature, target)
    binary_t, others_t = _decoupled(teacher / temperature, target)
    target_part = F.kl_div(binary_s, binary_t, reduction="batchmean", log_target=True)
    other_part = F.kl_div(others_s, others_t, reduction="batchmean", log_target=True)
    return temperature**2 * (alpha * target_part + beta * other_part)


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return `log (p_y, 1 - p_y)`, (B, 2), and the log-probabilities among the other classes, (B, C - 1)."""
    label = target.unsqueeze(1)
    others = torch.arange(logits.shape[1] - 1, device=logits.device).unsqueeze(0)
    others = others + (others >= label).long()  # the class numbers without the label's
    log_p = F.log_softmax(logits, dim=1)
    log_others = log_p.gather(1, others)
    binary = torch.cat([log_p.gather(1, label), log_others.logsumexp(dim=1, keepdim=True)], dim=1)
    return binary, F.log_softmax(logits.gather(1, others), dim=1)


class DKD(Term):
    """`dkd_loss` of the student's and the teacher's logits and the batch's labels."""

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.alpha = number("alpha", alpha, low=0.0)
        self.beta = number("beta", beta, low=0.0)
        self.temperature = number("temperature", temperature, above=0.0)
        self.symbol = f"T^2 ({self.alpha:g} TCKD + {self.beta:g} NCKD)"

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return dkd_loss(
            student.logits,
            required(teacher).logits,
            batch.target,
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
        )
