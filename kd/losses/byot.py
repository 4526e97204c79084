"""Be your own teacher: classifiers on the network's early stages learn from its last one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.check import number
from kd.errors import ConfigError
from kd.losses._classifier import pooled
from kd.losses._numeric import full_precision, matched_batches, stages
from kd.losses.hard import hard_target_loss
from kd.losses.kd import kd_loss
from kd.losses.term import Roles, Setting, Term, layer_names, read
from kd.types import Batch, Output

FEATURE_WEIGHT = 1.28e-4  # the authors' code: 1e-6 of the sum over a batch of 128


def byot_loss(
    shallow_logits: Tensor | Sequence[Tensor],
    shallow_features: Tensor | Sequence[Tensor],
    deepest_logits: Tensor,
    deepest_feature: Tensor,
    target: Tensor,
    *,
    temperature: float = 3.0,
    alpha: float = 0.1,
    beta: float = FEATURE_WEIGHT,
) -> Tensor:
    """Sum over early classifiers of `(1 - alpha) CE + alpha T^2 KL(deepest || shallow) + beta mean_b |f_i - f_C|^2`.

    Zhang et al. 2019 (1905.08094), equation 5, without the deepest classifier's own cross-entropy, which has weight 1.
    The paper leaves T^2 open; the authors' code has it. That code departs from the paper, which is followed here, in
    giving the deepest classifier's cross-entropy the weight `1 - alpha` too, and in counting only those elements of the
    features' difference where either is positive.

    Args:
        shallow_logits: (B, C) of each early classifier, one or a list.
        shallow_features: (B, D), what each of them classifies.
        deepest_logits: (B, C), the network's own; get no gradient.
        deepest_feature: (B, D), what its last layer classifies; gets no gradient.
        target: (B,), class numbers.
        temperature: T > 0.
        alpha: the soft targets' share, in [0, 1].
        beta: the features' weight, at least 0.

    Raises:
        ConfigError: a shape does not fit, or a hyper-parameter is not in its range.
    """
    alpha = number("alpha", alpha, low=0.0, high=1.0)
    beta = number("beta", beta, low=0.0)
    losses = []
    for logits, feature in stages(shallow_logits, shallow_features):
        ours, theirs = matched_batches(feature, deepest_feature)
        if ours.shape != theirs.shape:
            raise ConfigError(f"Expected features of one shape, but got {tuple(ours.shape)} and {tuple(theirs.shape)}.")
        hard = hard_target_loss(logits, target)
        soft = kd_loss(logits, deepest_logits, temperature=temperature)
        distance = (ours - theirs).square().sum(1).mean()
        losses.append((1.0 - alpha) * hard + alpha * soft + beta * distance)
    return torch.stack(losses).sum()


class BYOT(Term):
    """`byot_loss` of trained classifiers on all of the student's stages but the last; there is no other teacher.

    An early stage's head has a bottleneck of 1x1, strided and 1x1 convolution, each with batch norm and ReLU, to the
    last stage's size and the embedding's number of features, then a global average pool and a linear layer; for
    vectors, a linear layer with ReLU and another. The heads are dropped after training.

    Args:
        temperature: T > 0.
        alpha: the soft targets' share, in [0, 1].
        beta: the features' weight, at least 0.
    """

    symbol = "BYOT"
    transfers = "logits, features"
    needs_teacher = False

    def __init__(self, temperature: float = 3.0, alpha: float = 0.1, beta: float = FEATURE_WEIGHT) -> None:
        super().__init__()
        self.temperature = number("temperature", temperature, above=0.0)
        self.alpha = number("alpha", alpha, low=0.0, high=1.0)
        self.beta = number("beta", beta, low=0.0)
        self.heads = nn.ModuleList()

    def resolve(self, student: Roles, teacher: Roles) -> None:
        self.stages, [self.embedding] = layer_names(["stages"], student), layer_names(["embedding"], student)
        self.student_layers = tuple(dict.fromkeys((*self.stages, self.embedding)))

    def build(self, setting: Setting) -> None:
        *shallow, deepest = self._features(setting.student)
        if not shallow:
            raise ConfigError("BYOT teaches early stages, but the student has one stage only. Choose a deeper network.")
        size = self._embedding(setting.student).shape[1]
        for feature in shallow:
            if feature.ndim != deepest.ndim:
                raise ConfigError(
                    "BYOT needs stages of one kind, maps or vectors, "
                    f"but got {tuple(feature.shape[1:])} and {tuple(deepest.shape[1:])} for each image."
                )
            neck = _bottleneck(feature.shape, deepest.shape, size)
            self.heads.append(nn.ModuleDict({"neck": neck, "classifier": nn.Linear(size, setting.num_classes)}))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        logits, features = [], []
        for head, feature in zip(self.heads, self._features(student)[:-1], strict=True):
            assert isinstance(head, nn.ModuleDict)
            features.append(pooled(full_precision(head["neck"](feature))))
            logits.append(head["classifier"](features[-1]))
        return byot_loss(
            logits,
            features,
            student.logits,
            self._embedding(student),
            batch.target,
            temperature=self.temperature,
            alpha=self.alpha,
            beta=self.beta,
        )

    def _features(self, student: Output) -> list[Tensor]:
        return read(student, self.stages, "student", (2, 4), self.symbol)

    def _embedding(self, student: Output) -> Tensor:
        return read(student, (self.embedding,), "student", (2,), self.symbol)[0]


def _bottleneck(shape: Sequence[int], deepest: Sequence[int], channels: int) -> nn.Sequential:
    """Return a trained map from a stage's features to the size of the deepest stage's, with `channels` channels."""
    if len(shape) == 2:
        return nn.Sequential(nn.Linear(shape[1], channels), nn.ReLU())
    narrow = max(1, channels // 4)
    stride = tuple(max(1, ours // theirs) for ours, theirs in zip(shape[2:], deepest[2:], strict=True))
    layers: list[nn.Module] = []
    for a, b, kernel in ((shape[1], narrow, (1, 1)), (narrow, narrow, stride), (narrow, channels, (1, 1))):
        layers += [nn.Conv2d(a, b, kernel, kernel, bias=False), nn.BatchNorm2d(b), nn.ReLU()]  # type: ignore[arg-type]
    return nn.Sequential(*layers)
