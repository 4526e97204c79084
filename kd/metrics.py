"""What is said about a network's predictions on the test set."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

ECE_BINS = 15  # as in Guo et al. 2017 (1706.04599)


def test_metrics(logits: Tensor, target: Tensor, teacher_logits: Tensor | None = None) -> dict[str, Any]:
    """Compute the `test` block of result.json.

    logits (N, C), target (N,); teacher_logits (N, C) of the same images, or None if there is no teacher. Accuracies are
    fractions; nll and kl_to_teacher are means in nats; kl_to_teacher is KL(teacher || student) at T = 1; ece is the
    expected calibration error with 15 equal bins, and reliability has each bin's images, accuracy and mean confidence;
    agreement_on_teacher_mistakes is the share of the images that the teacher gets wrong on which the student makes the
    same mistake, None if it makes none; confusion[i][j] counts images of class i that were called j; a class
    without test images has per-class accuracy None.
    """
    logits = logits.double()
    predicted = logits.argmax(1)
    counted = hits(predicted, target, logits.shape[1])
    bins = _reliability(logits.softmax(1), target)
    found: dict[str, Any] = {
        "accuracy": counted["accuracy"],
        "errors": counted["errors"],
        "n": len(target),
        "nll": F.cross_entropy(logits, target).item(),
        "ece": _calibration_error(bins, len(target)),
        "reliability": bins,
        "per_class_accuracy": counted["per_class_accuracy"],
        "confusion": counted["confusion"],
        "agreement_with_teacher": None,
        "kl_to_teacher": None,
        "teacher_mistakes": None,
        "agreement_on_teacher_mistakes": None,
    }
    if teacher_logits is not None:
        teacher_log = teacher_logits.double().log_softmax(1)
        student_log = logits.log_softmax(1)
        taught = teacher_logits.argmax(1)
        agrees, mistaken = predicted == taught, taught != target
        found["agreement_with_teacher"] = agrees.double().mean().item()
        found["teacher_mistakes"] = int(mistaken.sum())
        if mistaken.any():
            found["agreement_on_teacher_mistakes"] = agrees[mistaken].double().mean().item()
        found["kl_to_teacher"] = F.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean").item()
    return found


def hits(predicted: Tensor, target: Tensor, classes: int) -> dict[str, Any]:
    """Accuracy, errors, per-class accuracy and confusion of predictions (N,), as `test_metrics` has them."""
    confusion = multiclass_confusion_matrix(predicted, target, num_classes=classes)
    images, right = confusion.sum(1).tolist(), confusion.diagonal().tolist()
    return {
        "accuracy": sum(right) / len(target),
        "errors": len(target) - sum(right),
        "per_class_accuracy": [hit / n if n else None for hit, n in zip(right, images, strict=True)],
        "confusion": confusion.tolist(),
    }


def _reliability(probabilities: Tensor, target: Tensor) -> list[dict[str, Any]]:
    """Images, accuracy and mean confidence in each bin (low, high] of the greatest probability; None where empty.

    torchmetrics (1.9) is not used here: it counts a confidence of exactly 1, as rounding gives, in a bin of its own.
    """
    confidence, predicted = probabilities.max(1)
    bins = ((confidence * ECE_BINS).ceil().long() - 1).clamp(0, ECE_BINS - 1)
    right = (predicted == target).double()
    images, rights, sums = (torch.bincount(bins, weights, ECE_BINS).tolist() for weights in (None, right, confidence))
    return [
        {"n": n, "accuracy": hit / n if n else None, "confidence": total / n if n else None}
        for n, hit, total in zip(images, rights, sums, strict=True)
    ]


def _calibration_error(bins: list[dict[str, Any]], images: int) -> float:
    """Sum over the bins of their share of the images times |accuracy - confidence|."""
    return math.fsum(one["n"] / images * abs(one["accuracy"] - one["confidence"]) for one in bins if one["n"])
