"""Attention transfer: the student looks where the teacher looks."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kd.losses._features import matched_maps, total, unit
from kd.losses._numeric import stages
from kd.losses._shapes import same_size
from kd.losses.term import FeatureTerm, Layers
from kd.types import Batch, Output


def attention_transfer_loss(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
    """Difference of the attention maps, `mean_b mean_xy (a_s - a_t)^2`, summed over the stages.

    a is the image's attention map `mean_c f_c^2`, flattened and divided by its Euclidean length. Zagoruyko and
    Komodakis 2017 (1612.03928), section 3.1 and equation 2 with p = 2. Unchanged when an image's features are scaled or
    its channels permuted. A map of zeros stays one, and gets no gradient.

    Equation 2 has the length of the difference; the square, averaged over the map and the batch, is the authors'
    published code, and the usual weight of 1,000 belongs to it. Where sizes differ, the paper interpolates attention
    maps: here the larger attention map is average-pooled.

    Args:
        student: (B, C_s, H, W), or a list of them.
        teacher: (B, C_t, H', W'), or a list of as many; gets no gradient.

    Raises:
        ConfigError: the numbers of maps or of images differ, or a feature is not a map.
    """
    return total(_stage(ours, theirs) for ours, theirs in stages(student, teacher))


def _stage(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = matched_maps(student, teacher)
    ours, theirs = same_size(ours.square().mean(1, keepdim=True), theirs.square().mean(1, keepdim=True))
    return F.mse_loss(unit(ours.flatten(1)), unit(theirs.flatten(1)))


class AttentionTransfer(FeatureTerm):
    """`attention_transfer_loss` of the feature maps at the ends of all stages."""

    symbol = "AT"
    dims = (4,)

    def __init__(self, student: Layers = "stages", teacher: Layers = "stages") -> None:
        super().__init__(student, teacher)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        ours, theirs = zip(*self.pairs(student, teacher), strict=True)
        return attention_transfer_loss(ours, theirs)
