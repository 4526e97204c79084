"""How the arms fare with each class: their accuracies, and what they take for what."""

from kd.report.confusion import READABLE, commonest, file_name, matrix
from kd.report.markup import Html, figure, join, percent, points, table, tag
from kd.report.pictures import Picture, bar_chart, role
from kd.report.read import Run

WIDE = 10  # classes from which matrices stand below each other
NOTE = (
    "Images by true class (rows) and predicted class (columns): blue is right, orange is wrong, the stronger the "
    "larger its share of the true class."
)


def class_pictures(run: Run) -> list[Picture]:
    """The bars of the classes and, of classes few enough to be read, each arm's matrix."""
    shown, _ = _shown(run)
    values = {name: [arm.test.per_class[number] for number in shown] for name, arm in run.arms.items()}
    bars = bar_chart("per_class", "Test accuracy by class", [_label(run, number) for number in shown], values)
    return [bars, *(matrix(run, name, arm.test.confusion) for name, arm in run.arms.items() if run.classes <= READABLE)]


def per_class(run: Run, drawn: dict[str, Picture]) -> Html:
    """The bars, and beside them the same classes in numbers; all classes below, if these are some of many."""
    shown, caption = _shown(run)
    parts = [tag("div", figure(drawn["per_class"].inline(), caption), _numbers(run, shown), class_="two")]
    if len(shown) < run.classes:
        whole = _numbers(run, list(range(run.classes)))
        parts.append(tag("details", tag("summary", f"All {run.classes} classes"), whole))
    return join(parts)


def confusions(run: Run, drawn: dict[str, Picture]) -> Html:
    """Each arm's matrix, or of many classes its commonest confusions."""
    heads = {arm: tag("h3", tag("span", arm, class_=f"arm {role(arm)}")) for arm in run.arms}
    if run.classes > READABLE:
        lists = [tag("div", head, commonest(run, run.arms[arm].test.confusion)) for arm, head in heads.items()]
        return tag("div", *lists, class_="three")
    shown = [
        tag("div", head, tag("div", drawn[f"confusion_{file_name(arm)}"].inline(), class_="scroll"))
        for arm, head in heads.items()
    ]
    grid = tag("div", *shown, class_="three wide" if run.classes > WIDE else "three")
    return join([grid, tag("p", NOTE, class_="note")])


def _numbers(run: Run, classes: list[int]) -> Html:
    rows: list[list[object]] = []
    for number in classes:
        images = sum(next(iter(run.arms.values())).test.confusion[number])
        values = [percent(arm.test.per_class[number]) for arm in run.arms.values()]
        change = [] if run.change is None else [points(_change(run, number))]
        rows.append([_label(run, number), *values, *change, f"{images:,}"])
    head: list[object] = ["class", *run.arms, *([] if run.change is None else ["change"]), "images"]
    return table(head, rows, class_="small")


def _shown(run: Run) -> tuple[list[int], str]:
    """The classes that the bars show, and the caption that says which these are."""
    numbers = list(range(run.classes))
    if len(numbers) <= READABLE:
        return numbers, "Test accuracy of each class."
    if run.change is not None:
        changes = {number: -abs(_change(run, number) or 0) for number in numbers}
        caption = f"Test accuracy of the {READABLE} classes in which baseline and student differ most."
        return sorted(sorted(numbers, key=changes.__getitem__)[:READABLE]), caption
    name, arm = list(run.arms.items())[-1]
    found = [1.0 if value is None else value for value in arm.test.per_class]
    caption = f"Test accuracy of the {READABLE} classes in which the {name} fares worst."
    return sorted(sorted(numbers, key=found.__getitem__)[:READABLE]), caption


def _change(run: Run, number: int) -> float | None:
    """Accuracy on a class, student minus baseline."""
    before, after = (run.arms[name].test.per_class[number] for name in ("baseline", "student"))
    return None if before is None or after is None else after - before


def _label(run: Run, number: int) -> str:
    return run.class_name(number) + (" (omitted)" if number in run.data["omitted"] else "")
