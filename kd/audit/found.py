"""An audit of runs that are finished: which belong together, and which ones a comparison is `versus`."""

import shlex
from typing import Any

from omegaconf import OmegaConf

from kd import claims
from kd.audit.evidence import Evidence
from kd.audit.request import PREFIX, Request
from kd.audit.settings import Settings, own_settings, without_aside
from kd.errors import ConfigError
from kd.report.comparison import recipe_text
from kd.report.read import Run, find_runs, read_run
from kd.schema import ComparisonConfig

Runs = dict[int, Run]  # by seed


def collect(request: Request) -> list[Evidence]:
    """Sort the finished runs in the folders into audits: one for each configuration, whatever its seeds.

    Raises:
        ConfigError: a folder holds no finished run, or no run with the config.yaml that says what it was.
        StoreError: a run's files are damaged.
    """
    groups, notes = _groups([read_run(folder) for folder in find_runs(request.folders)])
    settings = {name: _settings(next(iter(runs.values()))) for name, runs in groups.items()}
    found = []
    for name, runs in groups.items():
        first = next(iter(runs.values()))
        comparisons = _comparisons(first)
        evidence = Evidence(
            experiment=first.experiment,
            command=shlex.join([*PREFIX.split(), *(str(folder) for folder in request.folders)]),
            settings=settings[name],
            own=own_settings(first.experiment),
            seeds=sorted(runs),
            comparisons=comparisons,
            runs=dict(sorted(runs.items())),
            notes=[*notes],
        )
        if evidence.own is None:
            evidence.notes.append(
                f"There is no experiment {first.experiment} here to say whether these runs are shortened."
            )
        for overrides in {tuple(c.versus) for c in comparisons.values() if c.versus}:
            wanted = _with(settings[name], overrides)
            matches = [
                groups[other] for other in groups if other[0] == name[0] and without_aside(settings[other]) == wanted
            ]
            evidence.versus[overrides] = matches[0] if matches else {}
        found.append(evidence)
    return found


def _groups(runs: list[Run]) -> tuple[dict[tuple[str, str], Runs], list[str]]:
    """The runs by experiment and configuration, each group by seed; and in words what was left out."""
    groups: dict[tuple[str, str], Runs] = {}
    notes = []
    for run in runs:
        if not run.config:
            notes.append(f"{run.folder} has no config.yaml that says what it was: left out.")
            continue
        group = groups.setdefault((run.experiment, recipe_text(run.config)), {})
        if run.seed in group:
            notes.append(f"{run.folder} repeats seed {run.seed} of {group[run.seed].folder}: left out.")
        group.setdefault(run.seed, run)
    if not groups:
        raise ConfigError(" ".join(notes))
    return groups, notes


def _settings(run: Run) -> Settings:
    settings: Any = OmegaConf.to_container(OmegaConf.create(run.config))
    return dict(settings)


def _comparisons(run: Run) -> dict[str, ComparisonConfig]:
    """The hypotheses that the run's result.json names; of an older one, that distillation helps."""
    named = (run.claim or {}).get("comparisons") or {}
    return {name: ComparisonConfig(**one) for name, one in named.items()} or claims.comparisons(None)


def _with(settings: Settings, overrides: tuple[str, ...]) -> Settings | None:
    """The settings under overrides that name single keys; None where one chooses a whole group of them."""
    changed = without_aside(settings)
    for override in overrides:
        name = override.partition("=")[0]
        if name not in changed:
            return None
        changed[name] = OmegaConf.select(OmegaConf.from_dotlist([override]), name)
    return changed
