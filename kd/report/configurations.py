"""Which runs are repetitions of one configuration, and which differ in temperature and alpha alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev

from kd.files import ELSEWHERE, TRAINER_ELSEWHERE
from kd.report.read import Run

#: keys of config.yaml, by block, that name the seed, a place or a way of running: without them, equal means repeated
ASIDE = {"": ("seed", *ELSEWHERE), "data": ("root",), "trainer": TRAINER_ELSEWHERE, "teacher": ("allow_weak",)}
DIFFERENCES = 3  # settings that a title names


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None of a single value) of n values."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Grid:
    """Runs of one experiment and method that differ in T, alpha and seed only; a cell has one run of each seed."""

    title: str
    cells: dict[tuple[float, float], list[Run]]

    @property
    def temperatures(self) -> list[float]:
        return sorted({temperature for temperature, _ in self.cells})

    @property
    def alphas(self) -> list[float]:
        return sorted({alpha for _, alpha in self.cells})

    @property
    def best(self) -> list[tuple[float, float]]:
        """The cells of the highest mean validation accuracy of the student; none, if there was no validation."""
        found = {cell: spread.mean for cell, runs in self.cells.items() if (spread := validation(runs))}
        return [cell for cell, value in found.items() if value == max(found.values())]


def pools(runs: list[Run]) -> list[list[Run]]:
    """The configurations that were run under several seeds. A seed that comes twice counts once."""
    return [group for group in by_recipe(runs).values() if len(group) > 1]


def by_recipe(runs: list[Run]) -> dict[tuple[str, str], list[Run]]:
    """The runs by experiment and configuration, one of each seed; those without a config.yaml are left out."""
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        if run.config:
            groups.setdefault((run.experiment, recipe_text(run.config)), {}).setdefault(run.seed, run)
    return {key: list(by_seed.values()) for key, by_seed in groups.items()}


def grids(runs: list[Run]) -> list[Grid]:
    """The groups with at least two temperatures or two alphas."""
    groups: dict[tuple[str, str, str], dict[tuple[float, float], list[Run]]] = {}
    for (experiment, _), repeated in by_recipe(runs).items():
        method = repeated[0].method
        if method.get("temperature") is None or method.get("alpha") is None:
            continue
        rest = recipe_text(repeated[0].config, method=("temperature", "alpha"))
        cell = (float(method["temperature"]), float(method["alpha"]))
        groups.setdefault((experiment, str(method.get("name")), rest), {})[cell] = repeated
    drawn = {key: cells for key, cells in groups.items() if len(cells) > 1}
    titles = _titles(list(drawn))
    return [Grid(titles[key], cells) for key, cells in drawn.items()]


def validation(runs: Iterable[Run]) -> Spread | None:
    """The students' validation accuracy; None where a run had no validation."""
    return spread([run.arms["student"].val_accuracy if "student" in run.arms else None for run in runs])


def accuracy(runs: Iterable[Run], arm: str = "student") -> Spread | None:
    """An arm's test accuracy; None where a run does not have the arm."""
    return spread([run.arms[arm].test.accuracy if arm in run.arms else None for run in runs])


def change(runs: Iterable[Run]) -> Spread | None:
    """Test accuracy of the student minus that of the baseline, paired by seed."""
    return spread([run.change for run in runs])


def spread(values: list[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Spread(mean(known), stdev(known) if len(known) > 1 else None, len(known))


def recipe_text(config: str, **aside: tuple[str, ...]) -> str:
    """A config.yaml without its seed and what has no part in the result: equal for runs that differ only by seed.

    `aside` names further keys to leave out, by block: `method=("alpha",)`.
    """
    left_out = {block: ASIDE.get(block, ()) + aside.get(block, ()) for block in (*ASIDE, *aside)}
    kept, block, dropped = [], "", None
    for line in config.splitlines():
        indent = len(line) - len(line.lstrip(" "))
        key = line.strip().partition(":")[0]
        if dropped is not None and (indent > dropped or (indent == dropped and key.startswith("- "))):
            continue
        dropped = None
        if indent == 0 and not key.startswith("- "):
            block = key
        if (indent == 0 and key in left_out[""]) or (indent == 2 and key in left_out.get(block, ())):
            dropped = indent
        else:
            kept.append(line)
    return "\n".join(kept)


def _titles(keys: list[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """Experiment and method; where that is said of several, also the settings in which they differ."""
    titles = {}
    for experiment, method, rest in keys:
        others = [set(other.splitlines()) for e, m, other in keys if (e, m) == (experiment, method) and other != rest]
        shared = set.intersection(*others) if others else set(rest.splitlines())
        own = [line.strip() for line in rest.splitlines() if line not in shared]
        more = ["..."] if len(own) > DIFFERENCES else []
        titles[experiment, method, rest] = ", ".join([experiment, method, *own[:DIFFERENCES], *more])
    return titles
