"""In which other settings runs differ, beside those that have a column of their own."""

from collections import Counter
from itertools import compress

from kd.report.configurations import recipe_text
from kd.report.markup import cut
from kd.report.read import Run

#: these have columns and axes of their own, or are words
OWN = ("experiment", "claim", "method.name", "method.temperature", "method.alpha")
TOLD = 3  # settings of a run that are told, and those that get an axis
LETTERS = 48  # of a setting and its value


def settings(config: str) -> dict[str, str]:
    """The values of a config.yaml by dotted key, as they stand there; the items of a list joined by commas."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in config.splitlines():
        bare = line.lstrip(" ")
        indent, item = len(line) - len(bare), bare.startswith("- ")
        while path and path[-1][0] >= indent + item:  # an item stands as far to the right as its list's key
            path.pop()
        value = bare.removeprefix("- ")
        if not item:
            key, _, value = bare.partition(":")
            path.append((indent, key))
        name, value = ".".join(key for _, key in path), value.strip()
        if value:
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def varied(runs: list[Run]) -> dict[str, list[str | None]]:
    """Each setting that is not the same in all runs, with each run's value, None where a run has no such setting.

    A run without a config.yaml differs in none.
    """
    found = [settings(recipe_text(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for one in found for key in one if not _has_its_own(key)))
    values = {key: [one.get(key) for one in found] for key in keys}
    known = [bool(run.config) for run in runs]
    return {key: row for key, row in values.items() if len(set(compress(row, known))) > 1}


def unusual(runs: list[Run]) -> list[str]:
    """In which settings each run differs from most of the runs, as on a command line: `optim.lr=0.01`, or nothing."""
    usual = {key: (Counter(values).most_common(1)[0][0], values) for key, values in varied(runs).items()}
    told = []
    for number in range(len(runs)):
        own = [
            cut(f"{key}={values[number]}", LETTERS)
            for key, (common, values) in usual.items()
            if values[number] not in (common, None)
        ]
        more = [f"{len(own) - TOLD} more"] if len(own) > TOLD else []
        told.append(", ".join([*own[:TOLD], *more]))
    return told


def short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each key where no other key ends alike, else the whole."""
    ends = Counter(key.rpartition(".")[2] for key in keys)
    return {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys}


def _has_its_own(key: str) -> bool:
    return any(key == own or key.startswith(f"{own}.") for own in OWN)
