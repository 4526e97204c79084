"""Similarity-preserving distillation: images that excite the teacher alike shall excite the student alike."""

from collections.abc import Sequence

from torch import Tensor

from kd.losses._features import total, unit
from kd.losses._gather import gathered
from kd.losses._numeric import matched_batches, outside_autocast, stages
from kd.losses.term import FeatureTerm, Layers
from kd.types import Batch, Output


@outside_autocast
def similarity_preserving_loss(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
    """Difference of the batch's similarity matrices, `1/B^2 ||G_s - G_t||_F^2`, summed over the pairs of layers.

    G = F F^T with F (B, CHW) the flattened features, each row of G divided by its Euclidean length. Tung and Mori 2019
    (1907.09682), equations 1 to 4. Unchanged when all features are scaled by one factor or rotated. An image whose
    features are all 0 has similarity 0, and gets no gradient.

    Args:
        student: (B, ...), or a list of them.
        teacher: (B, ...), or a list of as many; gets no gradient.

    Raises:
        ConfigError: the numbers of features or of images differ.
    """
    return total(_pair(ours, theirs) for ours, theirs in stages(student, teacher))


def _pair(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = matched_batches(student, teacher)
    return (unit(ours @ ours.T) - unit(theirs @ theirs.T)).square().mean()


class SimilarityPreserving(FeatureTerm):
    """`similarity_preserving_loss` of the last feature maps before pooling; over the batches of all processes."""

    symbol = "SP"
    transfers = "relations"

    def __init__(self, student: Layers = "final", teacher: Layers = "final") -> None:
        super().__init__(student, teacher)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        ours, theirs = zip(*self.pairs(student, teacher), strict=True)
        return similarity_preserving_loss([gathered(s) for s in ours], [gathered(t) for t in theirs])
