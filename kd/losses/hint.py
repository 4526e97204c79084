"""FitNets' hints: the student's feature, through a regressor, matches the teacher's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.losses._numeric import matched_features, stages
from kd.losses._shapes import regressor
from kd.losses.term import FeatureTerm, Layers, Setting
from kd.types import Batch, Output


def hint_loss(student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
    """Mean squared error `mean (f_s - f_t)^2` over all elements, summed over stages.

    Romero et al. 2015 (1412.6550), equation 3, where f_s is the student's feature after the regressor. The paper has
    half of the sum of squares; the mean, as in the field's comparisons since CRD (1910.10699), does not depend on the
    layer's size.

    Args:
        student: regressed features of any shape (B, ...), one or a list.
        teacher: features of the same shapes; get no gradient.

    Raises:
        ConfigError: the numbers of features or their shapes differ.
    """
    return torch.stack([F.mse_loss(*matched_features(ours, theirs)) for ours, theirs in stages(student, teacher)]).sum()


class Hint(FeatureTerm):
    """`hint_loss` of the student's features, each through a trained regressor of its own, and the teacher's."""

    symbol = "hint"

    def __init__(self, student: Layers = "middle", teacher: Layers = "middle") -> None:
        super().__init__(student, teacher)
        self.regressors = nn.ModuleList()

    def build(self, setting: Setting) -> None:
        pairs = self.pairs(setting.student, setting.teacher)
        self.regressors.extend(regressor(ours.shape, theirs.shape) for ours, theirs in pairs)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        ours, theirs = zip(*self.pairs(student, teacher), strict=True)
        return hint_loss([regress(f) for regress, f in zip(self.regressors, ours, strict=True)], theirs)
