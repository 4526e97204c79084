"""Softmax regression representation learning: the teacher's classifier judges the student's feature."""

import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import ConfigError
from kd.losses._classifier import pooled, teacher_classifier
from kd.losses._numeric import full_precision, matched_features, matched_logits, outside_autocast, required
from kd.losses.term import FeatureTerm, Layers, Setting
from kd.types import Batch, Output


def srrl_loss(
    student_feature: Tensor, student_logits: Tensor, teacher_feature: Tensor, teacher_logits: Tensor
) -> Tensor:
    """Mean squared error of the features plus that of the logits, `mean (f_s - f_t)^2 + mean (W f_s - z_t)^2`.

    Yang et al. 2021 (Knowledge distillation via softmax regression representation learning, ICLR): feature matching and
    the softmax regression loss in its squared form, both with weight 1 as in the authors' code.

    Args:
        student_feature: (B, D), the student's pooled feature after the connector.
        student_logits: (B, C), what the teacher's classifier W makes of it; not the student's own logits.
        teacher_feature: (B, D), the teacher's pooled feature; gets no gradient.
        teacher_logits: (B, C); get no gradient.

    Raises:
        ConfigError: the features' or the logits' shapes differ.
    """
    features = F.mse_loss(*matched_features(student_feature, teacher_feature))
    return features + F.mse_loss(*matched_logits(student_logits, teacher_logits))


class SRRL(FeatureTerm):
    """`srrl_loss` of the student's last feature through a trained connector and the teacher's frozen classifier.

    The connector is a 1x1 convolution with batch norm and ReLU before the pooling, a linear layer for vectors. The
    teacher's classifier stays a part of the teacher: it is neither trained nor saved with this term.

    Args:
        student, teacher: the last feature of each network before its pooling: one layer or role.
    """

    symbol = "SRRL"

    def __init__(self, student: Layers = "final", teacher: Layers = "final") -> None:
        super().__init__(student, teacher)

    def build(self, setting: Setting) -> None:
        pairs = self.pairs(setting.student, setting.teacher)
        if len(pairs) != 1:
            raise ConfigError(f"SRRL compares one layer of each network, but got {len(pairs)}.")
        [(ours, theirs)] = pairs
        # in a tuple, which nn.Module does not look into
        self.classifier = (teacher_classifier(setting, self.teacher_layers[0], self.symbol),)
        self.connector: nn.Module = nn.Linear(ours.shape[1], theirs.shape[1])
        if ours.ndim == 4:
            convolution = nn.Conv2d(ours.shape[1], theirs.shape[1], 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
            self.connector = nn.Sequential(convolution, nn.BatchNorm2d(theirs.shape[1]), nn.ReLU())

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        [(ours, theirs)] = self.pairs(student, teacher)
        feature = pooled(full_precision(self.connector(ours)))
        return srrl_loss(
            feature, _classified(feature, self.classifier[0]), pooled(full_precision(theirs)), required(teacher).logits
        )


@outside_autocast
def _classified(feature: Tensor, classifier: nn.Linear) -> Tensor:
    bias = None if classifier.bias is None else classifier.bias.detach()
    return F.linear(feature.to(classifier.weight.dtype), classifier.weight.detach(), bias)
