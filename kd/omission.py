"""What a network knows of classes it never saw: the bias rules of Hinton et al. 2015 (1503.02531), section 3.

A network trained without a class has learned a low output bias for it. Adding to that bias alone shows what else it has
learned of the class. Three rules say how much to add:

- `fixed`: a given value, as published;
- `prior`: as much as makes the predicted share of the class equal its known share, on held-out images without labels;
- `oracle`: as much as is best on the test set, which no honest rule can know. It bounds what a correction can do.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd.metrics import hits

CURVE_POINTS = 61
SWEEPS = 1000  # each makes the shares of all classes better; tens are enough


def corrections(
    logits: Tensor,
    target: Tensor,
    omitted: Sequence[int],
    fixed: float | None,
    held_out: Tensor | None,
    shares: Sequence[float],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Correct the biases of the omitted classes by each rule: the blocks `omitted` and `correction` of result.json.

    logits (N, C) and target (N,) of the test set; held_out (M, C) are logits of held-out images, None or empty without
    any; shares (C,) is the known share of each class. The first block has one entry per omitted class and rule.
    """
    classes = list(omitted)
    biases: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    if fixed is None:
        missing["fixed"] = "no value was given (data.omit_bias)"
    else:
        biases["fixed"] = _on(classes, fixed, logits.shape[1])
    if held_out is None or not len(held_out):
        missing["prior"] = "there are no held-out images (data.val)"
    else:
        biases["prior"] = prior_bias(held_out, classes, shares)
    biases["oracle"] = _on(classes, oracle_bias(logits, target, classes), logits.shape[1])

    before = _test(logits, target, classes)
    rules = {rule: _test(logits.double() + bias, target, classes) for rule, bias in biases.items()}
    entries = [
        {
            "class": label,
            "rule": rule,
            "bias": biases[rule][label].item(),
            "accuracy_before": before["per_class_accuracy"][label],
            "accuracy_after": after["per_class_accuracy"][label],
            "overall_after": after["accuracy"],
        }
        for label in classes
        for rule, after in rules.items()
    ]
    correction = {
        "before": {key: before[key] for key in ("omitted_accuracy", "omitted_errors", "omitted_n")},
        "rules": {
            rule: {"bias": {str(label): biases[rule][label].item() for label in classes}, **after}
            for rule, after in rules.items()
        },
        "missing": missing,
        "curve": _curve(logits, target, classes, [bias[label].item() for bias in biases.values() for label in classes]),
    }
    return entries, correction


def prior_bias(logits: Tensor, omitted: Sequence[int], shares: Sequence[float]) -> Tensor:
    """Find biases (C,) with which each omitted class is predicted for its known share of the images.

    logits (M, C). Class by class, again and again until nothing changes: the class takes just the images whose best
    other logit exceeds its own by the least. A share that is not a whole number of images is rounded; images that tie
    are taken together or not at all, whichever is fewer.
    """
    logits = logits.double()
    bias = torch.zeros(logits.shape[1], dtype=torch.float64)
    wanted = {label: round(shares[label] * len(logits)) for label in omitted}
    for _ in range(SWEEPS):
        earlier = bias.clone()
        for label in omitted:
            others = logits + bias
            others[:, label] = -torch.inf
            margins = (others.max(1).values - logits[:, label]).sort().values
            bias[label] = _between(margins, wanted[label])
        if torch.equal(bias, earlier):
            break
    return bias


def oracle_bias(logits: Tensor, target: Tensor, omitted: Sequence[int]) -> float:
    """Find the bias, one for all omitted classes, with which most of the test images (N, C) are classified rightly.

    Exact: accuracy changes only where an omitted class overtakes the others on some image. Of the best intervals the
    one nearest to 0 is taken, and of it the middle; 0 itself if it is as good.
    """
    logits = logits.double()
    is_omitted = torch.zeros(logits.shape[1], dtype=torch.bool)
    is_omitted[list(omitted)] = True
    best_in = logits.masked_fill(~is_omitted, -torch.inf).max(1)
    best_out = logits.masked_fill(is_omitted, -torch.inf).max(1)
    margins, order = (best_out.values - best_in.values).sort()  # from this bias on, an omitted class is predicted
    gained = (best_in.indices == target)[order].long()
    lost = (best_out.indices == target)[order].long()
    right = lost.sum() + torch.cat([torch.zeros(1, dtype=torch.int64), (gained - lost).cumsum(0)])
    distinct = torch.cat([torch.tensor([True]), margins[1:] > margins[:-1], torch.tensor([True])])
    best = [k for k in torch.nonzero(distinct).flatten().tolist() if right[k] == right[distinct].max()]
    if any((k == 0 or margins[k - 1] < 0) and (k == len(margins) or margins[k] > 0) for k in best):
        return 0.0  # no correction is as good as any
    return min((_between(margins, k) for k in best), key=abs)


def _between(margins: Tensor, count: int) -> float:
    """A bias that exceeds just `count` of the sorted margins: midway to the next, or 1 beyond the outermost."""
    if count <= 0:
        return margins[0].item() - 1
    if count >= len(margins):
        return margins[-1].item() + 1
    while count and margins[count - 1] == margins[count]:  # ties cannot be told apart
        count -= 1
    if not count:
        return margins[0].item() - 1
    return (margins[count - 1].item() + margins[count].item()) / 2


def _on(omitted: Sequence[int], bias: float, classes: int) -> Tensor:
    made = torch.zeros(classes, dtype=torch.float64)
    made[list(omitted)] = bias
    return made


def _test(logits: Tensor, target: Tensor, omitted: Sequence[int]) -> dict[str, Any]:
    """Accuracy on all images and on those of the omitted classes, and the confusion matrix."""
    predicted = logits.argmax(1)
    _, omitted_accuracy = _accuracies(predicted, target, omitted)
    counted = hits(predicted, target, logits.shape[1])
    of_omitted = [counted["confusion"][label] for label in omitted]
    count = sum(map(sum, of_omitted))
    right = sum(row[label] for label, row in zip(omitted, of_omitted, strict=True))
    return {**counted, "omitted_accuracy": omitted_accuracy, "omitted_errors": count - right, "omitted_n": count}


def _accuracies(predicted: Tensor, target: Tensor, omitted: Sequence[int]) -> tuple[float, float | None]:
    """On all images, and on those of the omitted classes, None if there are none."""
    right = (predicted == target).double()
    of_omitted = right[torch.isin(target, torch.tensor(omitted))]
    return right.mean().item(), of_omitted.mean().item() if len(of_omitted) else None


def _curve(logits: Tensor, target: Tensor, omitted: Sequence[int], found: Sequence[float]) -> list[dict[str, Any]]:
    """Accuracies over one bias for all omitted classes, on a range that shows every rule."""
    low, high = min(0.0, *found), max(1.0, *found)
    margin = 0.5 * (high - low)
    points = []
    for bias in torch.linspace(low - margin, high + margin, CURVE_POINTS, dtype=torch.float64).tolist():
        predicted = (logits.double() + _on(omitted, bias, logits.shape[1])).argmax(1)
        accuracy, omitted_accuracy = _accuracies(predicted, target, omitted)
        points.append({"bias": bias, "omitted_accuracy": omitted_accuracy, "accuracy": accuracy})
    return points
