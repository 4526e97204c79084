"""Flow of the solution procedure: how the features change from layer to layer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import ConfigError
from kd.losses._features import matched_maps, total
from kd.losses._numeric import outside_autocast, stages
from kd.losses._shapes import common_size, regressor
from kd.losses.term import FeatureTerm, Layers, Setting
from kd.types import Batch, Output


@outside_autocast
def fsp_loss(
    student_first: Tensor | Sequence[Tensor],
    student_last: Tensor | Sequence[Tensor],
    teacher_first: Tensor | Sequence[Tensor],
    teacher_last: Tensor | Sequence[Tensor],
) -> Tensor:
    """Mean squared difference of the FSP matrices, summed over the sections.

    A section's matrix is G_ij = 1/(H W) sum_xy first_i(x, y) last_j(x, y), (B, C_first, C_last). Yim et al. 2017
    (CVPR, "A gift from knowledge distillation"), equations 1 and 2, with one weight for all sections. Equation 2 sums
    over a matrix's entries; the mean leaves the weight independent of the number of channels. Where the two ends of a
    section differ in size, the larger one is max-pooled, as in the paper; a widespread reimplementation averages.

    Args:
        student_first: (B, C_first, H, W), the maps at the start of a section, or a list of them, a section each.
        student_last: (B, C_last, H', W'), the maps at its end, or a list of as many.
        teacher_first: as the student's, with the same channels and any size; gets no gradient.
        teacher_last: likewise.

    Raises:
        ConfigError: the numbers of sections, images or channels differ, or a feature is not a map.
    """
    firsts, lasts = stages(student_first, teacher_first), stages(student_last, teacher_last)
    if len(firsts) != len(lasts):
        raise ConfigError(f"Expected as many first maps as last ones, but got {len(firsts)} and {len(lasts)}.")
    return total(_section(*first, *last) for first, last in zip(firsts, lasts, strict=True))


def _section(student_first: Tensor, teacher_first: Tensor, student_last: Tensor, teacher_last: Tensor) -> Tensor:
    our_first, their_first = matched_maps(student_first, teacher_first)
    our_last, their_last = matched_maps(student_last, teacher_last)
    ours, theirs = (our_first.shape[1], our_last.shape[1]), (their_first.shape[1], their_last.shape[1])
    if ours != theirs or len(our_first) != len(our_last):
        raise ConfigError(
            "Expected the maps of a section to have as many images and channels in student and teacher, but got student"
            f" {tuple(our_first.shape)} to {tuple(our_last.shape)}"
            f" and teacher {tuple(their_first.shape)} to {tuple(their_last.shape)}."
        )
    return F.mse_loss(_flow(our_first, our_last), _flow(their_first, their_last))


def _flow(first: Tensor, last: Tensor) -> Tensor:
    """Return the FSP matrix (B, C_first, C_last)."""
    size = common_size(first, last)
    first, last = _max_pooled(first, size).flatten(2), _max_pooled(last, size).flatten(2)
    return torch.bmm(first, last.transpose(1, 2)) / (size[0] * size[1])


def _max_pooled(feature: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = feature.shape[2:]
    if (height, width) == size:
        return feature
    if height % size[0] or width % size[1]:
        return F.adaptive_max_pool2d(feature, size)
    return F.max_pool2d(feature, (height // size[0], width // size[1]))  # the same; its gradient is deterministic


class FSP(FeatureTerm):
    """`fsp_loss` of neighbouring layers: each layer ends a section, and the next one starts there.

    n layers are n - 1 sections. The default, the ends of the stages, exists for every convolutional network; the
    paper's first section starts at the network's first layer: for networks that name a stem, set `student` and
    `teacher` to [stem, stages].

    The paper's student has the teacher's channels. Where they differ, a trained 1x1 convolution maps the student's.
    """

    symbol = "FSP"
    dims = (4,)

    def __init__(self, student: Layers = "stages", teacher: Layers = "stages") -> None:
        super().__init__(student, teacher)
        self.regressors = nn.ModuleList()

    def build(self, setting: Setting) -> None:
        if len(self.student_layers) < 2:
            raise ConfigError(
                "FSP compares how features change from one layer to the next and needs at least two layers of each "
                f"network, but got {', '.join(self.student_layers)} of the student "
                f"and {', '.join(self.teacher_layers)} of the teacher."
            )
        for ours, theirs in self.pairs(setting.student, setting.teacher):
            channels = ours.shape[1], theirs.shape[1]
            same = channels[0] == channels[1]
            self.regressors.append(nn.Identity() if same else regressor((1, channels[0], 1, 1), (1, channels[1], 1, 1)))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        ours, theirs = zip(*self.pairs(student, teacher), strict=True)
        ours = tuple(regress(feature) for regress, feature in zip(self.regressors, ours, strict=True))
        return fsp_loss(ours[:-1], ours[1:], theirs[:-1], theirs[1:])
