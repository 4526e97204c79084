"""Several runs side by side."""

import os
from dataclasses import dataclass
from statistics import mean, stdev

from kd.report.markup import Html, join, measured, percent, points, table, tag
from kd.report.pictures import ROLES
from kd.report.read import Run

NOTE = (
    "Difference: test accuracy of the student minus that of the baseline, in percentage points. Choose T "
    "and alpha by validation accuracy, never by test accuracy."
)
POOLED_NOTE = (
    "Runs of one configuration that differ only by seed: mean ± sample standard deviation over n seeds, the "
    "difference paired by seed. These rows describe; they decide nothing."
)


@dataclass(frozen=True)
class Pool:
    """Runs of one configuration under different seeds."""

    runs: list[Run]

    def row(self) -> list[object]:
        first = self.runs[0]
        cells = [self._accuracy(arm) for arm in ROLES]
        change = _spread([run.change for run in self.runs if run.change is not None], sign=True)
        seeds = ", ".join(str(run.seed) for run in self.runs)
        return [first.experiment, *_method(first), len(self.runs), seeds, *cells, change]

    def _accuracy(self, arm: str) -> Html:
        """An arm's mean; a network that all runs share, as teachers often are, has no spread."""
        values = [run.arms[arm].test.accuracy for run in self.runs if arm in run.arms]
        keys = {run.content["arms"][arm].get("store_key") for run in self.runs if arm in run.arms}
        return join([percent(values[0]), " (one network)"]) if len(keys) == 1 and keys != {None} else _spread(values)


def comparison(runs: list[Run]) -> Html:
    """The table of runs, in their order, and below it the means of those that differ only by seed."""
    head: list[object] = ["run", "experiment", "method", "T", "alpha", "seed"]
    head += [*(f"{arm} test" for arm in ROLES), "difference", *(f"{arm} val" for arm in ROLES)]
    names = run_names(runs)
    rows = [_row(run, name, number) for number, (run, name) in enumerate(zip(runs, names, strict=True), 1)]
    parts = [tag("h2", "Runs"), table(head, rows, class_="small runs"), tag("p", NOTE, class_="note")]
    if found := pools(runs):
        columns = ["experiment", "method", "T", "alpha", "n", "seeds", *(f"{arm} test" for arm in ROLES), "difference"]
        pooled = table(list(columns), [pool.row() for pool in found], class_="small runs")
        parts += [tag("h2", "Means over seeds"), pooled, tag("p", POOLED_NOTE, class_="note")]
    return tag("section", *parts)


def pools(runs: list[Run]) -> list[Pool]:
    """The configurations that were run under several seeds. A seed that comes twice counts once."""
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        if run.config:
            groups.setdefault((run.experiment, recipe_text(run.config)), {}).setdefault(run.seed, run)
    return [Pool(list(by_seed.values())) for by_seed in groups.values() if len(by_seed) > 1]


def recipe_text(config: str) -> str:
    """A config.yaml without its seeds and what has no part in the result: equal for runs that differ only by seed."""
    aside = {"": ("seed", "store", "logger", "force", "debug"), "data": ("root",), "teacher": ("seed",)}
    kept, block, dropped = [], "", None
    for line in config.splitlines():
        indent = len(line) - len(line.lstrip(" "))
        key = line.strip().partition(":")[0]
        if dropped is not None and (indent > dropped or (indent == dropped and key.startswith("- "))):
            continue
        dropped = None
        if indent == 0 and not key.startswith("- "):
            block = key
        if (indent == 0 and key in aside[""]) or (indent == 2 and key in aside.get(block, ())):
            dropped = indent
        else:
            kept.append(line)
    return "\n".join(kept)


def run_names(runs: list[Run]) -> list[str]:
    """The runs' folders, without what all of them share."""
    folders = [str(run.folder.resolve()) for run in runs]
    shared = os.path.commonpath(folders)
    return [
        os.path.relpath(folder, shared) if folder != shared else run.folder.name
        for run, folder in zip(runs, folders, strict=True)
    ]


def _row(run: Run, name: str, number: int) -> list[object]:
    arms = [run.arms.get(arm) for arm in ROLES]
    test = [percent(arm.test.accuracy if arm else None) for arm in arms]
    val = [percent(arm.val_accuracy if arm else None) for arm in arms]
    link = tag("a", name, href=f"#run-{number}")
    return [link, run.experiment, *_method(run), run.seed, *test, points(run.change), *val]


def _method(run: Run) -> list[object]:
    method = run.method
    return [method.get("name"), measured(method.get("temperature"), "g"), measured(method.get("alpha"), "g")]


def _spread(values: list[float], *, sign: bool = False) -> Html:
    """Mean and sample standard deviation, in percent."""
    if len(values) < 2:
        return percent(None)
    average = measured(mean(values), "+.2f" if sign else ".2f", 100)
    return join([average, " ± ", measured(stdev(values), ".2f", 100)])
