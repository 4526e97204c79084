"""DIST: the student's probabilities correlate with the teacher's, by image and by class, instead of equalling them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.check import number
from kd.losses._gather import gathered
from kd.losses._numeric import matched_logits, required
from kd.losses.term import Term
from kd.types import Batch, Output


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 4.0,
) -> Tensor:
    """Pearson distances of the tempered probabilities P = softmax(z / T), (B, C), by row and by column:

        T^2 (beta (1 - mean_b r(P_s[b, :], P_t[b, :])) + gamma (1 - mean_c r(P_s[:, c], P_t[:, c])))

    r is Pearson's correlation: over the classes of each image (the inter-class relation) and over the images of each
    class (the intra-class relation). Huang et al. 2022 (2205.10536). The factor T^2 is that of the authors' code.

    r of a constant row or column is defined as 0, with gradient 0: equal logits, and every column of a batch of one
    image. Values whose spread is within rounding count as constant. The authors' code instead adds 1e-8 to the product
    of the norms, which makes r of a class that is improbable in the whole batch too small. r does not change with the
    scale of a row or column, so each is scaled to a largest value of 1 before it leaves log space: no probability
    underflows.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); gets no gradient.
        beta: weight of the inter-class relation (rows), at least 0.
        gamma: weight of the intra-class relation (columns), at least 0.
        temperature: T > 0.

    Raises:
        ConfigError: the shapes differ, or a hyper-parameter is not in its range.
    """
    beta = number("beta", beta, low=0.0)
    gamma = number("gamma", gamma, low=0.0)
    temperature = number("temperature", temperature, above=0.0)
    student, teacher = matched_logits(student_logits, teacher_logits)
    log_p_student = F.log_softmax(student / temperature, dim=1)
    log_p_teacher = F.log_softmax(teacher / temperature, dim=1)
    inter = 1.0 - _correlation(log_p_student, log_p_teacher, dim=1).mean()
    intra = 1.0 - _correlation(log_p_student, log_p_teacher, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(log_student: Tensor, log_teacher: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along `dim` of what has these logarithms."""
    return (_direction(log_student, dim) * _direction(log_teacher, dim)).sum(dim)


def _direction(log_values: Tensor, dim: int) -> Tensor:
    """The centred values over their norm; zeros where they are constant."""
    largest = log_values.detach().amax(dim, keepdim=True)
    values = (log_values - largest).exp()
    centred = values - values.mean(dim, keepdim=True)
    squares = centred.square().sum(dim, keepdim=True)
    rounding = 4.0 * torch.finfo(values.dtype).eps * (1.0 - largest)  # of the logarithm, and of values of at most 1
    varies = squares > values.shape[dim] * rounding.square()
    # the root of 0 has an infinite gradient, and inf * 0 is NaN
    return (centred * squares.where(varies, 1.0).rsqrt()).where(varies, 0.0)


class DIST(Term):
    """`dist_loss` of the student's and the teacher's logits; `inter` and `intra` are its beta and gamma."""

    def __init__(self, inter: float = 1.0, intra: float = 1.0, temperature: float = 4.0) -> None:
        super().__init__()
        self.inter = number("inter", inter, low=0.0)
        self.intra = number("intra", intra, low=0.0)
        self.temperature = number("temperature", temperature, above=0.0)
        self.symbol = f"T^2 ({self.inter:g} inter + {self.intra:g} intra)"

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return dist_loss(
            gathered(student.logits),
            gathered(required(teacher).logits),
            beta=self.inter,
            gamma=self.intra,
            temperature=self.temperature,
        )
