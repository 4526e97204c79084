"""Activation boundaries: the student's neurons are on where the teacher's are."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.check import number
from kd.losses._numeric import matched_features, stages
from kd.losses._shapes import same_size
from kd.losses.term import FeatureTerm, Layers, Setting
from kd.types import Batch, Output


def activation_boundary_loss(
    student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor], *, margin: float = 1.0
) -> Tensor:
    """Squared hinge on the sign of the teacher's pre-activations, summed over an image's neurons, averaged over images.

    A neuron costs `max(0, m - s)^2` where the teacher's is active (t > 0) and `max(0, m + s)^2` where it is not: the
    "alternative loss" of Heo et al. 2019 (1811.03233). The deepest of several stages has weight 1, every shallower one
    half of the next, as in the authors' code, which then scales the sum by 0.003.

    Args:
        student: pre-activations of any shape (B, ...), one or a list from the shallowest to the deepest.
        teacher: pre-activations of the same shapes; get no gradient.
        margin: m > 0.

    Raises:
        ConfigError: the numbers of features or their shapes differ, or `margin` is not in its range.
    """
    margin = number("margin", margin, above=0.0)
    pairs = stages(student, teacher)
    weights = [0.5 ** (len(pairs) - 1 - i) for i in range(len(pairs))]
    losses = [w * _hinge(*matched_features(*pair), margin) for w, pair in zip(weights, pairs, strict=True)]
    return torch.stack(losses).sum()


def _hinge(student: Tensor, teacher: Tensor, margin: float) -> Tensor:
    inside = torch.where(teacher > 0, -student, student)  # how far beyond the teacher's side of the boundary
    return F.relu(margin + inside).square().sum() / len(student)


class ActivationBoundary(FeatureTerm):
    """`activation_boundary_loss` of the student's pre-activations, each through a trained connector, and the teacher's.

    A connector is a 1x1 convolution with batch norm (a linear layer with batch norm for vectors). Maps of different
    sizes are average-pooled to the smaller one, after the connector.
    """

    symbol = "AB"

    def __init__(
        self, student: Layers = "preactivations", teacher: Layers = "preactivations", margin: float = 1.0
    ) -> None:
        super().__init__(student, teacher)
        self.margin = number("margin", margin, above=0.0)
        self.connectors = nn.ModuleList()

    def build(self, setting: Setting) -> None:
        for ours, theirs in self.pairs(setting.student, setting.teacher):
            self.connectors.append(_connector(ours.shape, theirs.shape))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        ours, theirs = [], []
        for connector, (feature, other) in zip(self.connectors, self.pairs(student, teacher), strict=True):
            connected = connector(feature)
            if connected.ndim == 4:
                connected, other = same_size(connected, other)
            ours.append(connected)
            theirs.append(other)
        return activation_boundary_loss(ours, theirs, margin=self.margin)


def _connector(student_shape: Sequence[int], teacher_shape: Sequence[int]) -> nn.Sequential:
    channels = student_shape[1], teacher_shape[1]
    if len(student_shape) == 2:
        return nn.Sequential(nn.Linear(*channels, bias=False), nn.BatchNorm1d(channels[1]))
    return nn.Sequential(nn.Conv2d(*channels, 1, bias=False), nn.BatchNorm2d(channels[1]))
