"""Variational information distillation: the student's features predict the teacher's, with a variance per channel."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.check import number
from kd.errors import ConfigError
from kd.losses._features import total
from kd.losses._numeric import full_precision, matched_features, stages
from kd.losses._shapes import same_size
from kd.losses.term import FeatureTerm, Layers, Setting
from kd.types import Batch, Output

EPS = 1e-5  # the least variance
VARIANCE = 5.0  # the initial one


def vid_loss(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    rho: Tensor | Sequence[Tensor] | None = None,
    *,
    eps: float = EPS,
) -> Tensor:
    """Negative log-likelihood of the teacher's features, `mean 1/2 ((mu - f_t)^2 / s2 + log s2)`, summed over stages.

    s2 = softplus(rho) + eps is the variance of each channel; the mean is over batch, channels and pixels. Ahn et al.
    2019 (1904.05835), equations 4 to 6, without the constant log(2 pi)/2. The value has no lower bound of 0: it falls
    with the variance.

    Args:
        student: mu, the features that the student predicts, (B, C, H, W) or (B, D), or a list of them.
        teacher: of the same shape; gets no gradient.
        rho: (C,) or (D,), the raw variance, or a list of as many; None: the initial one, where s2 is 5.
        eps: the least variance, above 0.

    Raises:
        ConfigError: the shapes differ, or `eps` is not in its range.
    """
    eps = number("eps", eps, above=0.0)
    pairs = stages(student, teacher)
    raw = [rho] * len(pairs) if rho is None or isinstance(rho, Tensor) else list(rho)
    if len(raw) != len(pairs) or (isinstance(rho, Tensor) and len(pairs) > 1):
        count = 1 if isinstance(rho, Tensor) else len(raw)
        raise ConfigError(f"Expected a `rho` for each of {len(pairs)} features, but got {count}.")
    return total(_stage(ours, theirs, one, eps) for (ours, theirs), one in zip(pairs, raw, strict=True))


def _stage(student: Tensor, teacher: Tensor, rho: Tensor | None, eps: float) -> Tensor:
    mean, target = matched_features(student, teacher)
    if mean.ndim < 2:
        raise ConfigError(f"Expected features (batch, channels, ...), but got {tuple(mean.shape)}.")
    if rho is None:
        rho = mean.new_full((mean.shape[1],), _raw(VARIANCE, eps))
    if tuple(rho.shape) != (mean.shape[1],):
        raise ConfigError(f"Expected `rho` to have shape ({mean.shape[1]},), but got {tuple(rho.shape)}.")
    variance = F.softplus(full_precision(rho)) + eps
    variance = variance.view(-1, *[1] * (mean.ndim - 2))
    return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


def _raw(variance: float, eps: float = EPS) -> float:
    """Return the rho with this variance: the inverse of softplus(rho) + eps."""
    excess = max(variance - eps, 1e-30)
    return excess + math.log(-math.expm1(-excess))


class VID(FeatureTerm):
    """`vid_loss` of the features at the ends of all stages, predicted by a trained network of each student's feature.

    The predictor is that of the published code: three 1x1 convolutions as wide as the teacher's feature, without bias,
    with ReLU between them; linear layers for vectors. Where sizes differ, the larger map is average-pooled first.
    """

    symbol = "VID"

    def __init__(
        self, student: Layers = "stages", teacher: Layers = "stages", initial_variance: float = VARIANCE
    ) -> None:
        super().__init__(student, teacher)
        self.initial_variance = number("initial_variance", initial_variance, above=EPS)
        self.predictors = nn.ModuleList()
        self.rho = nn.ParameterList()

    def build(self, setting: Setting) -> None:
        for ours, theirs in self.pairs(setting.student, setting.teacher):
            self.predictors.append(_predictor(ours, theirs))
            self.rho.append(nn.Parameter(torch.full((theirs.shape[1],), _raw(self.initial_variance))))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        means, targets = [], []
        for predict, (ours, theirs) in zip(self.predictors, self.pairs(student, teacher), strict=True):
            if ours.ndim == 4:
                ours, theirs = same_size(ours, theirs)
            means.append(predict(ours))
            targets.append(theirs)
        return vid_loss(means, targets, list(self.rho))


def _predictor(student: Tensor, teacher: Tensor) -> nn.Module:
    """Return the untrained network that predicts the teacher's feature from the student's of the same size."""

    def layer(inputs: int, outputs: int) -> nn.Module:
        return (
            nn.Linear(inputs, outputs, bias=False) if student.ndim == 2 else nn.Conv2d(inputs, outputs, 1, bias=False)
        )

    ours, theirs = student.shape[1], teacher.shape[1]
    return nn.Sequential(layer(ours, theirs), nn.ReLU(), layer(theirs, theirs), nn.ReLU(), layer(theirs, theirs))
