"""What makes features of two networks comparable: pooling to one size, and trained regressors between two shapes."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import ConfigError


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps (B, C, H, W) to the size of the smaller one, height and width each."""
    size = common_size(student, teacher)
    return average_pooled(student, size), average_pooled(teacher, size)


def common_size(one: Tensor, other: Tensor) -> tuple[int, int]:
    """Return the smaller height and the smaller width of two maps (B, C, H, W)."""
    return min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])


def average_pooled(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Average-pool a map (B, C, H, W) to a size; a map of that size is returned as it is."""
    height, width = feature.shape[2:]
    if (height, width) == size:
        return feature
    if height % size[0] or width % size[1]:
        return F.adaptive_avg_pool2d(feature, size)
    return F.avg_pool2d(feature, (height // size[0], width // size[1]))  # the same; its gradient is deterministic


def regressor(student_shape: Sequence[int], teacher_shape: Sequence[int]) -> nn.Module:
    """Return an untrained linear map from the student's features to the teacher's shape.

    Shapes are those of a batch: (B, D) or (B, C, H, W). Vectors get a linear layer. Maps get one convolution that also
    changes the size, as FitNets' convolutional regressor does (Romero et al. 2015, 1412.6550, section 2.3):

    - equal sizes: 1x1;
    - the student's is r times larger: r x r with stride r; r times smaller: the same, transposed;
    - anything else: a kernel of the difference plus one, unpadded, as in the paper (transposed if the student's is
      smaller).
    """
    if len(student_shape) != len(teacher_shape) or len(student_shape) not in (2, 4):
        raise ConfigError(
            "Expected two vectors (batch, features) or two feature maps (batch, channels, height, width), "
            f"but got shapes {tuple(student_shape)} and {tuple(teacher_shape)}."
        )
    if len(student_shape) == 2:
        return nn.Linear(student_shape[1], teacher_shape[1])
    channels, ours, theirs = (student_shape[1], teacher_shape[1]), student_shape[2:], teacher_shape[2:]
    if all(a >= b for a, b in zip(ours, theirs, strict=True)):
        kernel, stride = _reduction(ours, theirs)
        return nn.Conv2d(*channels, kernel, stride)
    if all(a <= b for a, b in zip(ours, theirs, strict=True)):
        kernel, stride = _reduction(theirs, ours)
        return nn.ConvTranspose2d(*channels, kernel, stride)
    raise ConfigError(
        f"Maps of {tuple(ours)} and {tuple(theirs)} pixels cannot be matched: each is larger in one direction. "
        "Choose other layers."
    )


def _reduction(large: Sequence[int], small: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the kernel and stride of an unpadded convolution from a large map to a small one."""
    if large[0] % small[0] == 0 and large[1] % small[1] == 0:
        ratio = (large[0] // small[0], large[1] // small[1])
        return ratio, ratio
    return (large[0] - small[0] + 1, large[1] - small[1] + 1), (1, 1)
