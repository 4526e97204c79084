"""Knowledge review: each of the student's stages, fused with all deeper ones, matches the teacher's at many scales."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import ConfigError
from kd.losses._numeric import matched_features, stages
from kd.losses._shapes import average_pooled
from kd.losses.term import FeatureTerm, Layers, Setting
from kd.types import Batch, Output

LEVELS = (4, 2, 1)  # sizes that maps are pooled to, beside their own
WIDEST = 512  # channels that features are fused in, at most


def review_loss(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
    """Hierarchical context loss: mean squared error at several scales, averaged; summed over stages.

    Chen et al. 2021 (2104.09044), section 3. The maps are compared at their own size with weight 1, and average-pooled
    to 4x4, 2x2 and 1x1 with weights 1/2, 1/4 and 1/8. A stage's weights are divided by their sum. Sizes that are not
    smaller than the map are left out, so that a 4x4 map has weights 1, 1/2 (2x2) and 1/4 (1x1), as in the authors'
    code.

    Args:
        student: fused maps (B, C, H, W), one or a list.
        teacher: maps of the same shapes; get no gradient.

    Raises:
        ConfigError: the numbers of maps or their shapes differ, or they are no maps.
    """
    return torch.stack([_pyramid(*matched_features(ours, theirs)) for ours, theirs in stages(student, teacher)]).sum()


def _pyramid(student: Tensor, teacher: Tensor) -> Tensor:
    if student.ndim != 4:
        raise ConfigError(f"Expected maps (batch, channels, height, width), but got {tuple(student.shape)}.")
    difference = student - teacher  # pooling is linear: the difference of the pooled is the pooled difference
    total, weight, weights = difference.square().mean(), 1.0, 1.0
    for size in LEVELS:
        if size < min(student.shape[2:]):
            weight /= 2
            weights += weight
            total = total + weight * average_pooled(difference, (size, size)).square().mean()
    return total / weights


class Fusion(nn.Module):
    """Attention-based fusion of a stage with the fused deeper ones, and its map to the teacher's shape.

    Chen et al. 2021 (2104.09044), section 3. (B, C_s, H_s, W_s) and the deeper (B, width, h, w), or None at the
    deepest stage -> (B, C_t, H_t, W_t) to compare and (B, width, H_t, W_t) for the next shallower stage. A 1x1
    convolution with batch norm gives `width` channels; the deeper map is enlarged to this stage's size; a 1x1
    convolution of both and a sigmoid weigh each pixel of either, and their sum, at the teacher's size, goes through a
    3x3 convolution with batch norm.
    """

    def __init__(self, student_shape: Sequence[int], teacher_shape: Sequence[int], width: int, deepest: bool) -> None:
        super().__init__()
        self.size = tuple(teacher_shape[2:])
        self.reduce = _normalized_convolution(student_shape[1], width, 1)
        self.expand = _normalized_convolution(width, teacher_shape[1], 3)
        self.attention = None if deepest else nn.Conv2d(2 * width, 2, 1)

    def forward(self, feature: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        fused: Tensor = self.reduce(feature)
        if self.attention is not None:
            assert deeper is not None
            deeper = _resized(deeper, fused.shape[2:])
            weights = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = fused * weights[:, :1] + deeper * weights[:, 1:]
        fused = _resized(fused, self.size)
        return self.expand(fused), fused


class Review(FeatureTerm):
    """`review_loss` of the student's stages, fused from the deepest to the shallowest, and the teacher's stages.

    The authors' CIFAR code counts the pooled last map as one more, deepest stage. The paper's stages are used here:
    the networks' own.
    """

    symbol = "review"
    dims = (4,)

    def __init__(self, student: Layers = "stages", teacher: Layers = "stages") -> None:
        super().__init__(student, teacher)
        self.fusions = nn.ModuleList()

    def build(self, setting: Setting) -> None:
        pairs = self.pairs(setting.student, setting.teacher)
        width = min(WIDEST, pairs[-1][0].shape[1])
        for i, (ours, theirs) in enumerate(pairs):
            self.fusions.append(Fusion(ours.shape, theirs.shape, width, deepest=i == len(pairs) - 1))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        ours, theirs = zip(*self.pairs(student, teacher), strict=True)
        reviewed: list[Tensor] = []
        deeper = None
        for feature, fusion in zip(reversed(ours), reversed(self.fusions), strict=True):
            compared, deeper = fusion(feature, deeper)
            reviewed.insert(0, compared)
        return review_loss(reviewed, theirs)


def _normalized_convolution(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


def _resized(feature: Tensor, size: Sequence[int]) -> Tensor:
    return feature if tuple(feature.shape[2:]) == tuple(size) else F.interpolate(feature, tuple(size), mode="nearest")
