"""The story of classes that an arm never saw, in sentences."""

from kd.report.arm import Arm
from kd.report.correction import Correction
from kd.report.read import Run
from kd.report.words import enumerated


def corrected(run: Run) -> dict[str, Correction]:
    """The arms that never saw some classes, the student first."""
    found = {name: arm.correction for name, arm in run.arms.items() if arm.correction is not None}
    return dict(sorted(found.items(), key=lambda item: item[0] != "student"))


def story(run: Run) -> str | None:
    """What became of the omitted classes: in the student before and after its bias is corrected, then in the others."""
    told = corrected(run)
    if not told:
        return None
    one = len(run.data["omitted"]) == 1
    parts = []
    for number, (name, correction) in enumerate(told.items()):
        right = _share(correction.omitted_accuracy)
        if number == 0:
            its = f"{'its' if one else 'their'} {correction.omitted_n:,} test images"
            after = _after(correction, run.arms[name].test.accuracy, one=one)
            parts.append(f"The {name} never saw {omitted_name(run)} and gets {right} of {its} right{after}.")
        else:
            rule = correction.rules.get(correction.main or "")
            later = f", {_share(rule.omitted_accuracy)} after its correction (all: {rule.accuracy:.1%})" if rule else ""
            parts.append(f"The {name} never saw {'it' if one else 'them'} either: {right}{later}.")
    for name, arm in run.arms.items():
        if name not in told and (seen := omitted_accuracy(run, arm)) is not None:
            parts.append(f"The {name} saw {'it' if one else 'them'}: {seen:.1%}.")
    return " ".join(parts)


def omitted_name(run: Run) -> str:
    """The omitted classes in few words: up to four by name, more by their number."""
    names = [run.class_name(number) for number in run.data["omitted"]]
    if len(names) == 1:
        return f"class {names[0]}"
    return f"classes {enumerated(names)}" if len(names) <= 4 else f"{len(names)} of the {run.classes} classes"


def omitted_accuracy(run: Run, arm: Arm) -> float | None:
    """An arm's accuracy on the images of the omitted classes; None if the test set has none."""
    rows = {number: arm.test.confusion[number] for number in run.data["omitted"]}
    images = sum(map(sum, rows.values()))
    return sum(row[number] for number, row in rows.items()) / images if images else None


def _after(correction: Correction, accuracy: float, *, one: bool) -> str:
    """`, 98.6% after the bias of that class is raised by 3.5 (all test images: 97.9% before, 98.2% after)`.

    What a bias gives to some classes it may take from the others: never told without the accuracy on all images.
    """
    if correction.main is None:
        return ""
    rule = correction.rules[correction.main]
    bias = rule.common_bias
    if bias is None:
        how = f"corrected (rule: {correction.main})"
    else:
        how = f"{'raised' if bias >= 0 else 'lowered'} by {abs(bias):.3g}"
    which = "bias of that class is" if one else "biases of these classes are"
    whole = f"all test images: {accuracy:.1%} before, {rule.accuracy:.1%} after"
    return f", {_share(rule.omitted_accuracy)} after the {which} {how} ({whole})"


def _share(value: float | None) -> str:
    return "an unknown share" if value is None else f"{value:.1%}"
