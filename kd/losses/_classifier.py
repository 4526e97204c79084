"""The teacher's classifier, for methods that put the student's feature through it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import ConfigError
from kd.losses.term import Setting


def pooled(feature: Tensor) -> Tensor:
    """Return the global average of maps (B, C, H, W), as (B, C); vectors (B, D) as they are."""
    return F.adaptive_avg_pool2d(feature, 1).flatten(1) if feature.ndim == 4 else feature


def teacher_classifier(setting: Setting, layer: str, symbol: str) -> nn.Linear:
    """Return the linear layer that makes the teacher's logits of its pooled features at `layer`.

    Raises `ConfigError` if there is no such layer, or if what it makes of them are not the teacher's logits.
    """
    assert setting.teacher is not None
    found = setting.teacher_roles.get("classifier")
    if setting.teacher_network is None or not isinstance(found, str):
        raise ConfigError(
            f"{symbol} reuses the teacher's last linear layer: name it in teacher.model.taps.classifier, and choose a "
            "teacher that is one network (teacher=trained, self, checkpoint or ema)."
        )
    classifier = setting.teacher_network.get_submodule(found)
    feature = pooled(setting.teacher.taps[layer])
    if not isinstance(classifier, nn.Linear) or classifier.in_features != feature.shape[1]:
        takes = f"takes {classifier.in_features}" if isinstance(classifier, nn.Linear) else "is no nn.Linear"
        raise ConfigError(
            f"{symbol} needs a teacher that classifies its pooled features with one linear layer, but layer {layer!r} "
            f"has {feature.shape[1]} channels and {found!r} {takes}. Name the layer just before it, or choose a "
            "teacher without hidden layers in its classifier (a ResNet, say)."
        )
    with torch.no_grad():
        logits = classifier(feature.to(classifier.weight))
    if not torch.allclose(logits, setting.teacher.logits.to(logits), rtol=1e-3, atol=1e-3):
        raise ConfigError(
            f"{symbol} puts the teacher's pooled layer {layer!r} through its classifier {found!r}, but that does not "
            "give the teacher's logits: something lies between them. Name the last layer before the pooling."
        )
    return classifier
