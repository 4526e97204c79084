"""Correlation congruence: the student's images correlate with each other as the teacher's do."""

import math

from torch import Tensor

from kd.check import integer, number
from kd.losses._features import total, unit
from kd.losses._gather import gathered
from kd.losses._numeric import matched_batches, outside_autocast
from kd.losses.term import FeatureTerm, Layers
from kd.types import Batch, Output


@outside_autocast
def correlation_congruence_loss(student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Difference of the batch's correlations, `1/B^2 sum_ij (k(s_i, s_j) - k(t_i, t_j))^2`.

    k is the Gaussian kernel exp(-gamma ||x - y||^2) of the embeddings at unit length, expanded to order P: k(x, y) =
    sum_{p=0..P} exp(-2 gamma) (2 gamma)^p / p! (x . y)^p. Peng et al. 2019 (1904.01802), equations 6 and 8 to 11.
    Unchanged when an image's embedding is scaled or all are rotated. An embedding of zeros stays one, and gets no
    gradient.

    No layer embeds both networks in a space of one dimension first: the B x B matrices compare whatever the two
    dimensions are, and a trained layer could meet the loss in place of the student. A widespread reimplementation
    compares neighbouring images' element-wise differences instead of the kernel; the paper is followed here.

    Args:
        student: (B, D_s), or (B, ...), flattened.
        teacher: (B, D_t), likewise; gets no gradient.
        gamma: the kernel's, above 0.
        order: P, at least 1.

    Raises:
        ConfigError: the numbers of images differ, or `gamma` or `order` is not in its range.
    """
    gamma, order = number("gamma", gamma, above=0.0), integer("order", order, low=1)
    ours, theirs = matched_batches(student, teacher)
    return (_kernel(ours, gamma, order) - _kernel(theirs, gamma, order)).square().mean()


def _kernel(rows: Tensor, gamma: float, order: int) -> Tensor:
    """Return the expanded kernel (B, B) of all pairs of rows."""
    directions = unit(rows)
    scaled = 2 * gamma * (directions @ directions.T)
    series = 1 + scaled / order
    for p in range(order - 1, 0, -1):  # Horner: 1 + x/1 (1 + x/2 (1 + ...))
        series = 1 + scaled / p * series
    return math.exp(-2 * gamma) * series


class CorrelationCongruence(FeatureTerm):
    """`correlation_congruence_loss` of the embeddings; over the batches of all processes."""

    symbol = "CC"
    transfers = "relations"

    def __init__(
        self, student: Layers = "embedding", teacher: Layers = "embedding", gamma: float = 0.4, order: int = 2
    ) -> None:
        super().__init__(student, teacher)
        self.gamma = number("gamma", gamma, above=0.0)
        self.order = integer("order", order, low=1)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return total(
            correlation_congruence_loss(gathered(s), gathered(t), gamma=self.gamma, order=self.order)
            for s, t in self.pairs(student, teacher)
        )
