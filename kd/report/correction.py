"""What correcting the output bias of the omitted classes did to an arm, as its result says."""

from dataclasses import dataclass
from typing import Any

from kd.report.fields import get, optional, shares, square

#: the rules by which a bias is set, and how each is named
RULES = {"fixed": "fixed", "prior": "prior", "oracle": "oracle (tuned on the test set)"}


@dataclass(frozen=True)
class Rule:
    """The test set after one rule's biases (class: amount added to its logit)."""

    bias: dict[int, float]
    accuracy: float
    errors: int
    omitted_accuracy: float | None
    omitted_errors: int
    per_class: list[float | None]
    confusion: list[list[int]]

    @property
    def common_bias(self) -> float | None:
        """The one bias of all classes; None where they differ."""
        return next(iter(self.bias.values())) if len(set(self.bias.values())) == 1 else None

    @property
    def mean_bias(self) -> float:
        return sum(self.bias.values()) / len(self.bias)


@dataclass(frozen=True)
class Correction:
    """An arm that never saw some classes: on them before, after each rule, why a rule is missing, and the curve.

    A point of the curve: the bias added to the logits of all omitted classes, accuracy on them, accuracy on all.
    """

    omitted_accuracy: float | None
    omitted_errors: int
    omitted_n: int
    rules: dict[str, Rule]
    missing: dict[str, str]
    curve: list[tuple[float, float | None, float]]

    @property
    def main(self) -> str | None:
        """The rule that is told first: the published bias, else the one set without labels; never one tuned on test."""
        return next((name for name in ("fixed", "prior") if name in self.rules), None)


def read_correction(block: dict[str, Any], classes: int) -> Correction:
    """Raises KeyError, TypeError or ValueError for what is missing or not of its type."""
    before = get(block, "before", dict)
    return Correction(
        omitted_accuracy=optional(before, "omitted_accuracy", float),
        omitted_errors=get(before, "omitted_errors", int),
        omitted_n=get(before, "omitted_n", int),
        rules={str(name): _rule(rule, classes) for name, rule in get(block, "rules", dict).items()},
        missing={str(name): str(why) for name, why in (optional(block, "missing", dict) or {}).items()},
        curve=sorted(_point(point) for point in optional(block, "curve", list) or ()),
    )


def read_omitted(block: dict[str, Any]) -> list[dict[str, Any]]:
    """An arm's omitted classes under each rule, one entry each, with numbers where a page shows numbers."""
    omitted = block.get("omitted")
    entries = [omitted] if isinstance(omitted, dict) else omitted or ()
    keys = ("accuracy_before", "accuracy_after", "overall_after", "bias")
    return [
        {"class": get(entry, "class", int), "rule": entry.get("rule")}
        | {key: optional(entry, key, float) for key in keys}
        for entry in entries
    ]


def _rule(block: dict[str, Any], classes: int) -> Rule:
    bias = {int(number): float(get(block["bias"], number, float)) for number in get(block, "bias", dict)}
    if not bias:
        raise ValueError("a rule of `correction` has no bias")
    return Rule(
        bias=bias,
        accuracy=get(block, "accuracy", float),
        errors=get(block, "errors", int),
        omitted_accuracy=optional(block, "omitted_accuracy", float),
        omitted_errors=get(block, "omitted_errors", int),
        per_class=shares(block, "per_class_accuracy", classes),
        confusion=square(block, "confusion", classes),
    )


def _point(point: dict[str, Any]) -> tuple[float, float | None, float]:
    return get(point, "bias", float), optional(point, "omitted_accuracy", float), get(point, "accuracy", float)
