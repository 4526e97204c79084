"""What dashboards call things: the configuration's columns and the metrics, each named in this one place."""

from typing import Any

from kd.schema import RunConfig

STUDENT, BASELINE, TEACHER = "student", "baseline", "teacher"
#: what runs are sorted, grouped and drawn by; the whole configuration is under `WHOLE`
COLUMNS = ("T", "alpha", "beta", "seed", "method")
WHOLE = "config"
GLOBAL_STEP = "trainer/global_step"


def columns(config: RunConfig) -> dict[str, Any]:
    """The settings that a person compares runs by; a method without a temperature or a weight has None there."""
    method = config.method
    values = (method.temperature, method.alpha, method.beta, config.seed, method.name)
    return dict(zip(COLUMNS, values, strict=True))


def test(arm: str, name: str) -> str:
    """The test metric `name` of an arm."""
    return f"{arm}/test/{name}"


def class_accuracy(arm: str, name: str) -> str:
    """An arm's test accuracy on the class `name`."""
    return f"{arm}/test/class_accuracy/{name}"


def selected(arm: str, name: str) -> str:
    """The validation metric `name` of the epoch that was selected, not of the last one."""
    return f"{arm}/val/selected_{name}"


def points_over(other: str) -> str:
    """The student's test accuracy minus another arm's, in percentage points."""
    return f"{STUDENT}/test/points_over_{other}"


def headlines(scalars: dict[str, float]) -> dict[str, float]:
    """Of many scalars those that a table of runs has room for: accuracies on all classes, and differences."""
    ends = (test("", "accuracy"), selected("", "accuracy"))
    return {name: value for name, value in scalars.items() if name.endswith(ends) or points_over("") in name}


def of_arm(arm: str, result: dict[str, Any]) -> dict[str, float]:
    """The scalars of one arm of a result.json; what is unknown (a class without test images) is left out."""
    block = result["arms"][arm]
    found = {test(arm, name): value for name, value in block["test"].items() if isinstance(value, int | float)}
    classes = zip(result["data"]["classes"], block["test"]["per_class_accuracy"], strict=True)
    found |= {class_accuracy(arm, name): value for name, value in classes if value is not None}
    return found | {selected(arm, name): value for name, value in (block["val"] or {}).items()}


def summary(result: dict[str, Any]) -> dict[str, float]:
    """The scalars of all arms, and the student's differences from baseline and teacher."""
    accuracy = {arm: block["test"]["accuracy"] for arm, block in result["arms"].items()}
    found = {name: value for arm in accuracy for name, value in of_arm(arm, result).items()}
    others = [arm for arm in (BASELINE, TEACHER) if arm in accuracy]
    return found | {points_over(other): 100 * (accuracy[STUDENT] - accuracy[other]) for other in others}
