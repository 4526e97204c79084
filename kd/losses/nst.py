"""Neuron selectivity transfer: the student's channels select the same regions as the teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kd.losses._features import matched_maps, total, unit
from kd.losses._numeric import outside_autocast, stages
from kd.losses._shapes import same_size
from kd.losses.term import FeatureTerm, Layers
from kd.types import Batch, Output


@outside_autocast
def nst_loss(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
    """Squared maximum mean discrepancy between the two sets of channels, mean over the batch, summed over the layers.

    `1/C_s^2 sum_ij k(s_i, s_j) + 1/C_t^2 sum_ij k(t_i, t_j) - 2/(C_s C_t) sum_ij k(s_i, t_j)` with the polynomial
    kernel k(x, y) = (x . y)^2; s_i and t_i are an image's channels, each a map of HW numbers at unit length. Huang and
    Wang 2017 (1707.01219), equations 4 and 5. Unchanged when channels are scaled or permuted, so that the numbers of
    channels may differ. A channel of zeros stays one, and gets no gradient. Where sizes differ, the larger map is
    average-pooled.

    With this kernel the discrepancy is also ||M_s - M_t||_F^2 with M = 1/C sum_i s_i s_i^T, (HW, HW): whichever
    matrices are smaller are computed.

    Args:
        student: (B, C_s, H, W), or a list of them.
        teacher: (B, C_t, H', W'), or a list of as many; gets no gradient.

    Raises:
        ConfigError: the numbers of maps or of images differ, or a feature is not a map.
    """
    return total(_layer(ours, theirs) for ours, theirs in stages(student, teacher))


def _layer(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = (unit(maps.flatten(2)) for maps in same_size(*matched_maps(student, teacher)))
    (_, c_s, pixels), c_t = ours.shape, theirs.shape[1]
    if pixels**2 <= c_s**2 + c_t**2 + c_s * c_t:
        return (_second_moment(ours) - _second_moment(theirs)).square().sum((1, 2)).mean()
    return _mean_kernel(ours, ours) + _mean_kernel(theirs, theirs) - 2 * _mean_kernel(ours, theirs)


def _second_moment(channels: Tensor) -> Tensor:
    """Return M (B, HW, HW) of channels (B, C, HW)."""
    return torch.bmm(channels.transpose(1, 2), channels) / channels.shape[1]


def _mean_kernel(channels: Tensor, others: Tensor) -> Tensor:
    """Return the mean of the kernel over an image's pairs of channels, and over the images."""
    return torch.bmm(channels, others.transpose(1, 2)).square().mean()


class NST(FeatureTerm):
    """`nst_loss` of the last feature maps before pooling."""

    symbol = "NST"
    dims = (4,)

    def __init__(self, student: Layers = "final", teacher: Layers = "final") -> None:
        super().__init__(student, teacher)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        ours, theirs = zip(*self.pairs(student, teacher), strict=True)
        return nst_loss(ours, theirs)
