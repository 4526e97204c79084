"""Every number about the test set, against plain loops over Python floats."""

import json
import math

import pytest
import torch

from kd import metrics

CLASSES = 5


def softmax(logits):
    top = max(logits)
    exponentials = [math.exp(logit - top) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def position(values):
    """Of the first greatest value."""
    return max(range(len(values)), key=lambda place: (values[place], -place))


def reliability(probabilities, targets, bins):
    """Images, accuracy and mean confidence in the bins (m/M, (m+1)/M] of the greatest probability."""
    found = []
    for number in range(bins):
        inside = [
            (max(row), position(row) == target)
            for row, target in zip(probabilities, targets, strict=True)
            if number / bins < max(row) <= (number + 1) / bins
        ]
        means = [sum(values) / len(inside) for values in zip(*inside, strict=True)] or [None, None]
        found.append({"n": len(inside), "accuracy": means[1], "confidence": means[0]})
    return found


def calibration_error(found):
    """Guo et al. 2017 (1706.04599), equation 3: the bins weighted by their share of the images."""
    images = sum(one["n"] for one in found)
    return sum(one["n"] / images * abs(one["accuracy"] - one["confidence"]) for one in found if one["n"])


def reference(logits, target, teacher=None):
    """The test block once more, image by image."""
    logits, target = logits.double().tolist(), target.tolist()
    count, classes = len(target), len(logits[0])
    predicted = [position(row) for row in logits]
    probabilities = [softmax(row) for row in logits]
    bins = reliability(probabilities, target, 15)
    confusion = [[0] * classes for _ in range(classes)]
    for true, called in zip(target, predicted, strict=True):
        confusion[true][called] += 1
    errors = sum(true != called for true, called in zip(target, predicted, strict=True))
    found = {
        "accuracy": (count - errors) / count,
        "errors": errors,
        "n": count,
        "nll": -sum(math.log(row[true]) for row, true in zip(probabilities, target, strict=True)) / count,
        "ece": calibration_error(bins),
        "reliability": bins,
        "per_class_accuracy": [row[c] / sum(row) if sum(row) else None for c, row in enumerate(confusion)],
        "confusion": confusion,
        "agreement_with_teacher": None,
        "kl_to_teacher": None,
        "teacher_mistakes": None,
        "agreement_on_teacher_mistakes": None,
    }
    if teacher is not None:
        teacher = teacher.double().tolist()
        called = [position(row) for row in teacher]
        mistaken = [place for place in range(count) if called[place] != target[place]]
        found["teacher_mistakes"] = len(mistaken)
        if mistaken:
            same = sum(called[place] == predicted[place] for place in mistaken)
            found["agreement_on_teacher_mistakes"] = same / len(mistaken)
        found["agreement_with_teacher"] = (
            sum(position(row) == called for row, called in zip(teacher, predicted, strict=True)) / count
        )
        found["kl_to_teacher"] = (
            sum(
                t * (math.log(t) - math.log(s))
                for theirs, ours in zip(map(softmax, teacher), probabilities, strict=True)
                for t, s in zip(theirs, ours, strict=True)
            )
            / count
        )
    return found


def compare(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        if name in ("confusion", "errors", "n", "teacher_mistakes") or value is None:
            assert found[name] == value, name
        elif name == "reliability":
            compare_bins(found[name], value)
        else:
            assert found[name] == pytest.approx(value, abs=1e-9), name


def compare_bins(found, expected):
    assert len(found) == len(expected) == 15
    for one, other in zip(found, expected, strict=True):
        assert one["n"] == other["n"]
        for key in ("accuracy", "confidence"):
            assert one[key] == (None if other[key] is None else pytest.approx(other[key]))


def draw(seed, count=200, scale=3.0):
    """Logits that lean to the label, the labels, and a teacher's logits."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (count,), generator=generator)
    logits, teacher = scale * torch.randn(2, count, CLASSES, generator=generator)
    logits[torch.arange(count), target] += scale
    return logits, target, teacher


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_plain_loops(seed, scale):
    logits, target, teacher = draw(seed, scale=scale)
    compare(metrics.test_metrics(logits, target, teacher), reference(logits, target, teacher))


def test_without_a_teacher():
    logits, target, _ = draw(2)
    compare(metrics.test_metrics(logits, target), reference(logits, target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_computed_in_float64(dtype):
    logits, target, teacher = (part.to(dtype) if part.is_floating_point() else part for part in draw(3))
    compare(metrics.test_metrics(logits, target, teacher), reference(logits, target, teacher))


def test_a_class_without_test_images():
    logits, target, _ = draw(4)
    kept = target != 2
    found = metrics.test_metrics(logits[kept], target[kept])
    compare(found, reference(logits[kept], target[kept]))
    assert found["per_class_accuracy"][2] is None
    assert found["confusion"][2] == [0] * CLASSES
    assert sum(row[2] for row in found["confusion"]) > 0  # it is still predicted


def test_a_perfect_network():
    target = torch.arange(CLASSES).repeat(3)
    logits = 1e4 * torch.nn.functional.one_hot(target, CLASSES).float()
    found = metrics.test_metrics(logits, target, logits)
    assert (found["accuracy"], found["errors"], found["nll"], found["ece"]) == (1, 0, 0, 0)
    assert (found["agreement_with_teacher"], found["kl_to_teacher"]) == (1, 0)
    assert found["per_class_accuracy"] == [1] * CLASSES


def test_certainty_shares_its_bin_with_near_certainty():
    """Of confidences 1 and 0.978, both in the last bin, half are right: |3/6 - 0.989|, not the sum of two gaps."""
    logits = torch.zeros(6, 3)
    logits[:3, 0], logits[3:, 0] = 60, 4.5
    target = torch.tensor([1, 1, 1, 0, 0, 0])
    near = math.exp(4.5) / (math.exp(4.5) + 2)
    assert metrics.test_metrics(logits, target)["ece"] == pytest.approx((1 + near) / 2 - 0.5)


def test_wrong_and_certain_stays_finite():
    logits, target = torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.tensor([1, 1])
    found = metrics.test_metrics(logits, target, -logits)
    assert found["nll"] == 5e3
    assert found["kl_to_teacher"] == 1e4
    assert found["ece"] == 0.5


def test_rows_are_truth_and_columns_are_predictions():
    found = metrics.test_metrics(torch.tensor([[0.0, 0, 1], [0, 0, 1], [1, 0, 0]]), torch.tensor([0, 0, 1]))
    assert found["confusion"] == [[0, 0, 2], [1, 0, 0], [0, 0, 0]]
    assert found["per_class_accuracy"] == [0, 0, None]


def test_the_divergence_is_of_the_teacher_from_the_student():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    found = metrics.test_metrics(student, torch.tensor([0]), teacher)
    assert found["kl_to_teacher"] == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-7)


def test_everything_fits_into_json():
    found = metrics.test_metrics(*draw(5))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
