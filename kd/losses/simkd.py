"""SimKD: the student keeps the teacher's classifier and only learns to feed it."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from kd.check import integer
from kd.errors import ConfigError
from kd.losses._classifier import pooled, teacher_classifier
from kd.losses._numeric import matched_features
from kd.losses._shapes import same_size
from kd.losses.term import FeatureTerm, Layers, Setting, read
from kd.taps import Tapped
from kd.types import Batch, Output

TRANSFERRED = "transferred"


def simkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error `mean (P(f_s) - f_t)^2` of the projected student feature and the teacher's last feature.

    Chen et al. 2022 (2203.14001), section 3: the whole loss of the method, without labels.

    Args:
        student: (B, ...), after the projector.
        teacher: the same shape; gets no gradient.

    Raises:
        ConfigError: the shapes differ.
    """
    return F.mse_loss(*matched_features(student, teacher))


class ReusedClassifier(nn.Module):
    """A network up to one of its layers, a projector to the teacher's feature, and the teacher's frozen classifier.

    forward: image -> `Output` with the logits and the tap `transferred`, the projected feature. Maps (B, C, H, W) that
    are larger than the teacher's are average-pooled to its size first. The projector has 1x1, 3x3 and 1x1 convolutions,
    each with batch norm and ReLU, `factor` times narrower in the middle than the teacher's feature (section 3 of
    2203.14001); for vectors, two linear layers with a ReLU between them.

    Args:
        network: the student's.
        layer: whose output is projected.
        student_shape, teacher_shape: of one image's feature, (C, H, W) or (D,).
        classifier: the numbers of features and classes.
        bias: of the classifier.
        factor: at least 1.
        drop: modules of the network behind `layer`, replaced by `nn.Identity`, so that no unused weights are kept.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        classifier: Sequence[int],
        bias: bool = True,
        factor: int = 2,
        drop: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for name in drop:
            network.set_submodule(name, nn.Identity())
        self.layer = layer
        self.network = Tapped(network, [layer], owner="student")
        self.pool: nn.Module = nn.Identity()
        if len(student_shape) == 3:
            size = tuple(min(ours, theirs) for ours, theirs in zip(student_shape[1:], teacher_shape[1:], strict=True))
            if size != tuple(student_shape[1:]):
                self.pool = nn.AdaptiveAvgPool2d(size)
        self.projector = _projector(student_shape, teacher_shape, factor)
        features, classes = classifier
        self.classifier = nn.Linear(features, classes, bias=bias).requires_grad_(False)

    def forward(self, image: Tensor) -> Output:
        transferred = self.projector(self.pool(self.network(image).taps[self.layer]))
        return Output(self.classifier(pooled(transferred)), {TRANSFERRED: transferred})


class SimKD(FeatureTerm):
    """`simkd_loss`; trains, and delivers, a `ReusedClassifier` around the student's network.

    Chen et al. 2022 (2203.14001). If the student's map is smaller than the teacher's, the teacher's is average-pooled
    to its size, as in the authors' code.

    Args:
        student, teacher: the last feature of each network before its pooling: one layer or role.
        factor: how much narrower the projector is in the middle, at least 1.
    """

    symbol = "SimKD"

    def __init__(self, student: Layers = "final", teacher: Layers = "final", factor: int = 2) -> None:
        super().__init__(student, teacher)
        self.factor = integer("factor", factor, low=1)

    def wrap(self, model: dict[str, Any], setting: Setting) -> dict[str, Any]:
        pairs = self.pairs(setting.student, setting.teacher)
        if len(pairs) != 1:
            raise ConfigError(f"SimKD projects one layer of the student, but got {len(pairs)}.")
        [(ours, theirs)] = pairs
        classifier = teacher_classifier(setting, self.teacher_layers[0], self.symbol)
        return {
            "_target_": "kd.losses.simkd.ReusedClassifier",
            "network": model,
            "layer": self.student_layers[0],
            "student_shape": list(ours.shape[1:]),
            "teacher_shape": list(theirs.shape[1:]),
            "classifier": [classifier.in_features, classifier.out_features],
            "bias": classifier.bias is not None,
            "factor": self.factor,
            "drop": _behind(setting.student_network, self.student_layers[0], setting.student_roles.get("classifier")),
        }

    def build(self, setting: Setting) -> None:
        reused = setting.student_network
        if not isinstance(reused, ReusedClassifier):
            raise ConfigError(f"SimKD trains a ReusedClassifier, but got a {type(reused).__name__}.")
        classifier = teacher_classifier(setting, self.teacher_layers[0], self.symbol)
        reused.classifier.load_state_dict(classifier.state_dict())

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        [theirs] = read(teacher, self.teacher_layers, "teacher", self.dims, self.symbol)
        [ours] = read(student, (TRANSFERRED,), "student", self.dims, self.symbol)
        return simkd_loss(*same_size(ours, theirs)) if ours.ndim == 4 else simkd_loss(ours, theirs)


def _projector(student_shape: Sequence[int], teacher_shape: Sequence[int], factor: int) -> nn.Sequential:
    start, end = student_shape[0], teacher_shape[0]
    middle = max(1, end // factor)
    if len(student_shape) == 1:
        return nn.Sequential(nn.Linear(start, middle), nn.ReLU(), nn.Linear(middle, end))
    layers: list[nn.Module] = []
    for a, b, kernel in ((start, middle, 1), (middle, middle, 3), (middle, end, 1)):
        convolution = nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers)


def _behind(network: nn.Module, layer: str, classifier: Any) -> list[str]:
    """Return the names of the linear layers that `layer` does not depend on."""
    try:
        used = {name for name, _ in create_feature_extractor(network, [layer]).named_modules()}
    except Exception:  # fx raises many types on code that it cannot follow
        return [classifier] if isinstance(classifier, str) else []
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and name not in used]
