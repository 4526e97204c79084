"""Logit standardisation: the student matches how the teacher's logits relate, not their size."""

from torch import Tensor

from kd.check import number
from kd.errors import ConfigError
from kd.losses._numeric import full_precision, matched_logits, required
from kd.losses.kd import kd_loss
from kd.losses.term import Term
from kd.types import Batch, Output


def standardize(logits: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Each sample's logits with mean 0 and standard deviation 1, `(z - mean(z)) / (eps + std(z))`, (B, C) in and out.

    Sun et al. 2024 (2403.01427), algorithm 1, without its division by the temperature, which `kd_loss` does. That the
    standard deviation is the unbiased one, with C - 1, and the value of eps are taken from the authors' code.

    A row of equal logits becomes zeros. Its gradient is that of `(z - mean(z)) / eps`: the standard deviation is taken
    as constant where it is 0, and has no derivative.

    Raises `ConfigError` unless the logits are (B, C) and `eps` is above 0.
    """
    eps = number("eps", eps, above=0.0)
    if logits.ndim != 2:
        raise ConfigError(f"Expected logits (batch, classes), but got {tuple(logits.shape)}.")
    logits = full_precision(logits)
    centred = logits - logits.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / max(logits.shape[1] - 1, 1)
    varies = variance > 0
    # the root is taken of 1 where the variance is 0: a root of 0 has an infinite gradient, and inf * 0 is NaN
    deviation = variance.where(varies, 1.0).sqrt().where(varies, 0.0)
    return centred / (eps + deviation)


def standardized_kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    """`kd_loss` of the standardised logits, `T^2 mean_b KL(softmax(Z(z_t) / T) || softmax(Z(z_s) / T))`.

    Z is `standardize`. Sun et al. 2024 (2403.01427), algorithm 2. Invariant to a shift of a sample's logits and to a
    positive factor, of the student's and of the teacher's each on its own.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.
        temperature: T > 0, the paper's base temperature.

    Raises:
        ConfigError: the shapes differ, or `temperature` is not in its range.
    """
    student, teacher = matched_logits(student_logits, teacher_logits)
    return kd_loss(standardize(student), standardize(teacher), temperature=temperature)


class StandardizedKD(Term):
    """`standardized_kd_loss` of the student's and the teacher's logits."""

    symbol = "T^2 KL(standardised)"

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = number("temperature", temperature, above=0.0)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return standardized_kd_loss(student.logits, required(teacher).logits, temperature=self.temperature)
