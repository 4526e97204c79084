"""Probabilistic knowledge transfer: which images of a batch are each other's likely neighbours."""

import torch
from torch import Tensor

from kd.check import number
from kd.losses._features import total, unit
from kd.losses._gather import gathered
from kd.losses._numeric import matched_batches, outside_autocast
from kd.losses.term import FeatureTerm, Layers
from kd.types import Batch, Output


@outside_autocast
def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Divergence of the neighbourhoods, `1/B^2 sum_ij p_ij log((p_ij + eps) / (q_ij + eps))`.

    k_ij = (cos(e_i, e_j) + 1) / 2, and p_ij = k_ij / sum_j k_ij, of the teacher; q likewise, of the student. Passalis
    and Tefas 2018 (1803.10837), equations 4 to 8, with the cosine kernel. Unchanged when an image's embedding is
    scaled or all are rotated. An embedding of zeros has cosine 0 with all, itself included, and gets no gradient.

    The paper leaves each image out of its own neighbourhood (j != i) and sums; this has j = i among the neighbours, the
    mean over B^2 and `eps`, as the authors' published code has, since the usual weight of 30,000 belongs to those.

    Args:
        student: (B, D_s), or (B, ...), flattened.
        teacher: (B, D_t), likewise; gets no gradient.
        eps: above 0; keeps the logarithm finite.

    Raises:
        ConfigError: the numbers of images differ, or `eps` is not in its range.
    """
    eps = number("eps", eps, above=0.0)
    ours, theirs = matched_batches(student, teacher)
    q, p = _neighbours(ours), _neighbours(theirs)
    return (p * (torch.log(p + eps) - torch.log(q + eps))).mean()


def _neighbours(rows: Tensor) -> Tensor:
    """Return the probabilities (B, B); each row sums to 1."""
    directions = unit(rows)
    kernel = ((directions @ directions.T + 1) / 2).clamp(min=0)  # rounding can pass below a cosine of -1
    return kernel / kernel.sum(dim=1, keepdim=True)


class PKT(FeatureTerm):
    """`pkt_loss` of the embeddings; over the batches of all processes."""

    symbol = "PKT"
    transfers = "relations"

    def __init__(self, student: Layers = "embedding", teacher: Layers = "embedding", eps: float = 1e-7) -> None:
        super().__init__(student, teacher)
        self.eps = number("eps", eps, above=0.0)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return total(pkt_loss(gathered(s), gathered(t), eps=self.eps) for s, t in self.pairs(student, teacher))
