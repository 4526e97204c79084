"""What a run did and found, in words that claim no more than it shows."""

from typing import Any

from kd.report.markup import measured
from kd.report.read import Run


def settings(run: Run) -> list[str]:
    """Seed, method and origin in short phrases."""
    shared = {"T": "temperature", "alpha": "alpha", "beta": "beta"}
    given = [f"{word} = {value:g}" for word, key in shared.items() if (value := run.method.get(key)) is not None]
    origin = run.content.get("forked_from")
    forked = [] if origin is None else [f"baseline and student start from {origin['folder']}"]
    return [f"seed {run.seed}", f"method {run.method.get('name')}", *given, *forked]


def outcome(run: Run) -> str:
    """What became of the student, in one or two sentences."""
    images = run.arms["student" if "student" in run.arms else next(iter(run.arms))].test.n
    one = f"The test set has {images:,} images, so that one image is {100 / images:.2g} points." if images else ""
    if run.change is None:
        best = ", ".join(f"{name} {arm.test.accuracy:.2%}" for name, arm in run.arms.items())
        return f"Test accuracy: {best}; one seed is no verdict. {one}"
    baseline, student = (run.arms[name].test.accuracy for name in ("baseline", "student"))
    cause = "Training" if run.method.get("name") == "hard" else "Distillation"
    if len({"baseline", "student"} & set(run.data["omitted_from"])) == 1:
        cause += ", and the classes that only one of both saw,"
    return (
        f"{cause} changed test accuracy by {100 * round(run.change, 12) + 0.0:+.2f} points, "
        f"from {baseline:.2%} (baseline) to {student:.2%} (student); one seed is no verdict. {one}"
    )


def omission(run: Run) -> str | None:
    """Which classes which arms never saw."""
    if not run.data["omitted"]:
        return None
    names = [run.class_name(number) for number in run.data["omitted"]]
    arms = [str(arm) for arm in run.data["omitted_from"]]
    which = f"Class {names[0]} was" if len(names) == 1 else f"Classes {enumerated(names)} were"
    return f"{which} left out of the training of {enumerated(arms)}; the test set is whole."


def metric_value(metric: str, value: Any) -> object:
    """A published or measured number as its metric is read: accuracies and agreement in percent."""
    if value is None:
        return "-"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return measured(value, ".2%" if is_share(metric) else ",.6g")
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)


def is_share(metric: str) -> bool:
    return "accuracy" in metric or "agreement" in metric


def is_corrected(metric: str) -> bool:
    """Whether a claim's metric is one of omitted classes, or of a corrected bias."""
    return metric.startswith(("omitted_", "corrected_"))


def metric_name(metric: str) -> str:
    """A claim's metric in words."""
    if not is_corrected(metric):
        return metric
    corrected = ", bias corrected" if metric.startswith("corrected_") else ""
    bare = metric.removeprefix("corrected_")
    where = " on the omitted classes" if bare.startswith("omitted_") else ""
    return f"{bare.removeprefix('omitted_')}{where}{corrected}"


def other_method(claim: dict[str, Any], method: dict[str, Any]) -> str | None:
    """The method that the claim's numbers of the student were published for, if the run's is another."""
    published = claim.get("method")
    return None if published is None or published == method.get("name") else str(published)


def enumerated(words: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
