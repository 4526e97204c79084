"""Several runs side by side."""

import os

from kd.report import words
from kd.report.configurations import Spread, change, pools, spread
from kd.report.markup import DASH, Html, join, measured, percent, points, table, tag
from kd.report.pictures import ROLES, Picture
from kd.report.read import Run
from kd.report.sweep import panels
from kd.report.varied import unusual

NOTE = (
    "Difference: test accuracy of the student minus that of the baseline, in percentage points. Choose T "
    "and alpha by validation accuracy, never by test accuracy."
)
OTHER_NOTE = "Below a name: other settings that differ from those of most of these runs."
PUBLISHED_NOTE = "Published: what the claim's source gives for the student; in brackets the same as measured here."
POOLED_NOTE = (
    "Runs of one configuration that differ only by seed: mean ± sample standard deviation over n seeds, the "
    "difference paired by seed; of runs with one seed the first counts. These rows describe; they decide nothing."
)
MOST_PUBLISHED = 2  # numbers in a cell
#: a metric's published number and the measured one
Pair = tuple[object, object]


def comparison(runs: list[Run], drawn: dict[str, Picture]) -> Html:
    """The table of runs in their order, below it the means of those that differ only by seed, then the pictures."""
    claimed = any(_pairs(run) for run in runs)
    head: list[object] = ["run", "experiment", "method", "T", "alpha", "seed"]
    published: list[object] = ["published (here)"] if claimed else []
    head += [*(f"{arm} test" for arm in ROLES), *published, "difference", *(f"{arm} val" for arm in ROLES)]
    others = unusual(runs)
    rows = [
        _row(run, name, number, other, claimed)
        for number, (run, name, other) in enumerate(zip(runs, run_names(runs), others, strict=True), 1)
    ]
    note = " ".join([NOTE, *([OTHER_NOTE] if any(others) else []), *([PUBLISHED_NOTE] if claimed else [])])
    parts = [tag("h2", "Runs"), table(head, rows, class_="small runs"), tag("p", note, class_="note")]
    if found := pools(runs):
        columns: list[object] = ["experiment", "method", "T", "alpha", "n", "seeds"]
        columns += [*(f"{arm} test" for arm in ROLES), *published, "difference"]
        other_of = {run.folder: other for run, other in zip(runs, others, strict=True)}
        pooled_rows = [_pooled(group, other_of[group[0].folder], claimed) for group in found]
        pooled = table(columns, pooled_rows, class_="small runs")
        parts += [tag("h2", "Means over seeds"), pooled, tag("p", POOLED_NOTE, class_="note")]
    return join([tag("section", *parts), panels(runs, drawn)])


def run_names(runs: list[Run]) -> list[str]:
    """The runs' folders, without what all of them share."""
    folders = [str(run.folder.resolve()) for run in runs]
    shared = os.path.commonpath(folders)
    return [
        os.path.relpath(folder, shared) if folder != shared else run.folder.name
        for run, folder in zip(runs, folders, strict=True)
    ]


def _row(run: Run, name: str, number: int, other: str, claimed: bool) -> list[object]:
    arms = [run.arms.get(arm) for arm in ROLES]
    test = [percent(arm.test.accuracy if arm else None) for arm in arms]
    val = [percent(arm.val_accuracy if arm else None) for arm in arms]
    link = tag("a", name, href=f"#run-{number}")
    published = [_published(run, _pairs(run))] if claimed else []
    return [_named(link, other), run.experiment, *_method(run), run.seed, *test, *published, points(run.change), *val]


def _named(name: str, other: str) -> Html:
    """What a row is, and below it in which other settings it differs."""
    return join([name, tag("div", other, class_="muted") if other else None])


def _pooled(runs: list[Run], other: str, claimed: bool) -> list[object]:
    first = runs[0]
    cells = [_accuracy(runs, arm) for arm in ROLES]
    seeds = ", ".join(str(run.seed) for run in runs)
    published = [_published(first, _pooled_pairs(runs))] if claimed else []
    difference = _spread(change(runs), sign=True)
    return [_named(first.experiment, other), *_method(first), len(runs), seeds, *cells, *published, difference]


def _method(run: Run) -> list[object]:
    method = run.method
    return [method.get("name"), measured(method.get("temperature"), "g"), measured(method.get("alpha"), "g")]


def _accuracy(runs: list[Run], arm: str) -> Html:
    """An arm's mean; a network that all runs share, as teachers often are, has no spread."""
    having = [run for run in runs if arm in run.arms]
    keys = {run.content["arms"][arm].get("store_key") for run in having}
    values: list[float | None] = [run.arms[arm].test.accuracy for run in having]
    return (
        join([percent(values[0]), " (one network)"]) if len(keys) == 1 and keys != {None} else _spread(spread(values))
    )


def _spread(found: Spread | None, *, sign: bool = False) -> Html:
    """Mean and sample standard deviation, in percent."""
    if found is None or found.sd is None:
        return percent(None)
    average = measured(found.mean, "+.2f" if sign else ".2f", 100)
    return join([average, " ± ", measured(found.sd, ".2f", 100)])


def _pairs(run: Run) -> dict[str, Pair]:
    """What was published of the student, by metric, and beside it what was measured."""
    claim = run.claim or {}
    published, found = ((claim.get(block) or {}).get("student") or {} for block in ("published", "measured"))
    return {metric: (value, found.get(metric)) for metric, value in published.items()}


def _pooled_pairs(runs: list[Run]) -> dict[str, Pair]:
    """The same of runs that differ only by seed, and so have one published number: means over the seeds."""
    pooled: dict[str, Pair] = {}
    for metric, (value, _) in _pairs(runs[0]).items():
        values = [_pairs(run).get(metric, (None, None))[1] for run in runs]
        known = spread([float(v) if isinstance(v, int | float) else None for v in values])
        pooled[metric] = (value, known.mean if known else None)
    return pooled


def _published(run: Run, pairs: dict[str, Pair]) -> Html:
    """A cell of published and measured numbers, which says so if what was published is of another method.

    Of many only the first is shown, of all test images if there is one; each run's own part of the page has the others.
    """
    if not pairs:
        return Html(DASH)
    first = next((metric for metric in ("accuracy", "errors") if metric in pairs), next(iter(pairs)))
    shown = pairs if len(pairs) <= MOST_PUBLISHED else {first: pairs[first]}
    said = [
        tag("span", *_number(metric, value), " (", words.metric_value(metric, found), ")")
        for metric, (value, found) in shown.items()
    ]
    if left := len(pairs) - len(shown):
        said.append(tag("span", f"and {left} more"))
    other = words.other_method(run.claim or {}, run.method)
    return tag("div", *said, tag("span", f"method {other}") if other else None, class_="published")


def _number(metric: str, value: object) -> list[object]:
    return [words.metric_value(metric, value), "" if metric == "accuracy" else f" {words.metric_name(metric)}"]
