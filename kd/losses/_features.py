"""What losses on features share: unit vectors that survive zeros, pairs of maps, and sums over stages."""

from collections.abc import Iterable

import torch
from torch import Tensor

from kd.errors import ConfigError
from kd.losses._numeric import full_precision

SHORTEST = 1e-12  # a vector at most this long has no direction; the same threshold as F.normalize's


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """Divide vectors along `dim` by their Euclidean length; a zero vector stays zero and gets no gradient.

    `F.normalize` gives a zero vector a gradient 1e12 times too large to be of use.
    """
    square = vectors.square().sum(dim, keepdim=True)
    directed = ~(square <= SHORTEST**2)  # so written, NaN passes through instead of becoming zero
    return torch.where(directed, vectors / torch.where(directed, square, 1.0).sqrt(), 0.0)


def matched_maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two feature maps (B, C, H, W) in full precision, the teacher's detached.

    Raises `ConfigError` unless both are maps of the same number of images.
    """
    if student.ndim != 4 or teacher.ndim != 4 or len(student) != len(teacher):
        raise ConfigError(
            "Expected feature maps (batch, channels, height, width) of as many images from student and teacher, "
            f"but got student {tuple(student.shape)} and teacher {tuple(teacher.shape)}."
        )
    return full_precision(student), full_precision(teacher.detach())


def total(values: Iterable[Tensor]) -> Tensor:
    """Sum the losses of all stages."""
    return torch.stack(list(values)).sum()
