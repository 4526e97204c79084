"""Factor transfer: the student's translator matches a compressed form of the teacher's feature, its factor."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.check import integer, number
from kd.losses._numeric import matched_batches, matched_features
from kd.losses._shapes import same_size
from kd.losses.term import FeatureTerm, Layers, Roles, Setting, Term, layer_names, listed, read
from kd.types import Batch, Output

NO_LENGTH = 1e-6  # factors shorter than this are not scaled up to length 1: their gradient would explode


def factor_transfer_loss(student_factor: Tensor, teacher_factor: Tensor, *, p: int = 1) -> Tensor:
    """Mean of `|norm(F_s) - norm(F_t)|^p` over the elements of flattened factors, each image's of length 1.

    Kim, Park and Kwak 2018 (1802.04977), section 3.3; the paper has the p-norm of each image's difference, the mean
    goes with the weight 200 of the field's comparisons since CRD (1910.10699). Their code averages squared channels
    into one before it normalises, which is attention transfer of the factors; the paper, followed here, does not.

    Args:
        student_factor: (B, C, H, W), from the translator.
        teacher_factor: the same shape, from the paraphraser; gets no gradient.
        p: 1 or 2.

    Raises:
        ConfigError: the shapes differ, or `p` is not in its range.
    """
    p = integer("p", p, low=1, high=2)
    student, teacher = matched_batches(*matched_features(student_factor, teacher_factor))
    difference = F.normalize(student, eps=NO_LENGTH) - F.normalize(teacher, eps=NO_LENGTH)
    return difference.abs().pow(p).mean()


def paraphraser_loss(reconstructed: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of a feature that went through the paraphraser and back, `mean (P(f_t) - f_t)^2`.

    Kim, Park and Kwak 2018 (1802.04977), section 3.1, which has the sum.

    Args:
        reconstructed: (B, C, H, W).
        teacher: the same shape; gets no gradient.

    Raises:
        ConfigError: the shapes differ.
    """
    return F.mse_loss(*matched_features(reconstructed, teacher))


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's feature: (B, C, H, W) -> factor (B, rate C, H, W) -> (B, C, H, W).

    Three 3x3 convolutions and three transposed ones, each with batch norm and leaky ReLU (0.1).
    """

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        narrow = _factor_channels(channels, rate)
        self.encoder = _layers(nn.Conv2d, channels, channels, narrow, narrow)
        self.decoder = _layers(nn.ConvTranspose2d, narrow, narrow, channels, channels)

    def forward(self, feature: Tensor) -> Tensor:
        reconstructed: Tensor = self.decoder(self.encoder(feature))
        return reconstructed


class Paraphrase(Term):
    """The first stage: trains the `Paraphraser` on the teacher's feature. The student waits.

    Args:
        teacher: the layer or role whose maps are reconstructed.
        rate: the factor's number of channels, relative to the feature's; above 0.
    """

    symbol = "reconstruction"
    transfers = "features"
    needs_student = False

    def __init__(self, teacher: Layers = "final", rate: float = 0.5) -> None:
        super().__init__()
        self.asked = listed("teacher", teacher)
        self.rate = number("rate", rate, above=0.0)

    def resolve(self, student: Roles, teacher: Roles) -> None:
        self.teacher_layers = layer_names(self.asked, teacher)[-1:]

    def build(self, setting: Setting) -> None:
        self.paraphraser = Paraphraser(self._feature(setting.teacher).shape[1], self.rate)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        feature = self._feature(teacher).detach()
        return paraphraser_loss(self.paraphraser(feature), feature)

    def _feature(self, teacher: Output | None) -> Tensor:
        return read(teacher, self.teacher_layers, "teacher", (4,), self.symbol)[0]


class FactorTransfer(FeatureTerm):
    """The second stage: `factor_transfer_loss` between the student's translator and the frozen paraphraser.

    The paraphraser is the one of a `Paraphrase` term of the same name and rate in the first stage. The translator has
    three 3x3 convolutions, each with batch norm and leaky ReLU (0.1). Factors of different sizes are average-pooled to
    the smaller one.

    Args:
        student, teacher: one layer or role of maps each.
        rate: the factor's number of channels, relative to the teacher's; above 0.
        p: 1 or 2.
    """

    symbol = "factor"
    dims = (4,)
    carried = ("paraphraser",)

    def __init__(self, student: Layers = "final", teacher: Layers = "final", rate: float = 0.5, p: int = 1) -> None:
        super().__init__(student, teacher)
        self.rate = number("rate", rate, above=0.0)
        self.p = integer("p", p, low=1, high=2)

    def resolve(self, student: Roles, teacher: Roles) -> None:
        super().resolve(student, teacher)
        self.student_layers, self.teacher_layers = self.student_layers[-1:], self.teacher_layers[-1:]

    def build(self, setting: Setting) -> None:
        [(ours, theirs)] = self.pairs(setting.student, setting.teacher)
        narrow = _factor_channels(theirs.shape[1], self.rate)
        self.translator = _layers(nn.Conv2d, ours.shape[1], ours.shape[1], narrow, narrow)
        self.paraphraser = Paraphraser(theirs.shape[1], self.rate).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FactorTransfer":
        super().train(mode)
        if hasattr(self, "paraphraser"):
            self.paraphraser.eval()
        return self

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        [(ours, theirs)] = self.pairs(student, teacher)
        with torch.no_grad():
            factor = self.paraphraser.encoder(theirs)
        return factor_transfer_loss(*same_size(self.translator(ours), factor), p=self.p)


def _factor_channels(channels: int, rate: float) -> int:
    return max(1, int(channels * rate))


def _layers(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], *channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(channels):
        layers += [kind(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)
