"""An audit of runs that are finished: which belong together, and which ones a comparison is `versus`."""

import shlex
from typing import Any

from omegaconf import OmegaConf

from kd import claims
from kd.audit.evidence import Evidence
from kd.audit.request import PREFIX, Request, below, key
from kd.audit.settings import Settings, flat, own_settings, without_aside
from kd.errors import ConfigError
from kd.report.configurations import recipe_text
from kd.report.read import Run, find_runs, read_run
from kd.schema import ComparisonConfig

Runs = dict[int, Run]  # by seed
Name = tuple[str, str]  # of a configuration: its experiment, and its text


def collect(request: Request) -> list[Evidence]:
    """Sort the finished runs in the folders into audits: one for each configuration, whatever its seeds.

    Raises:
        ConfigError: the folders hold no finished run, or no run with the config.yaml that says what it was.
        StoreError: a run's files are damaged.
    """
    groups, notes = _groups([read_run(folder) for folder in find_runs(request.folders)])
    settings = {name: _settings(next(iter(runs.values()))) for name, runs in groups.items()}
    own = {experiment: own_settings(experiment) for experiment in {name[0] for name in groups}}
    versus = {name: _versus(name, groups, settings) for name in groups}
    beside = _versus_only(versus) | _controls(settings)
    found = []
    for name, runs in groups.items():
        if name in beside:
            continue
        first = next(iter(runs.values()))
        evidence = Evidence(
            experiment=first.experiment,
            command=shlex.join([*PREFIX.split(), *(str(folder) for folder in request.folders)]),
            settings=settings[name],
            own=own[name[0]],
            seeds=sorted(runs),
            comparisons=_comparisons(first),
            runs=dict(sorted(runs.items())),
            versus={overrides: groups[other] if other else {} for overrides, other in versus[name].items()},
            itself={overrides for overrides, other in versus[name].items() if other == name},
            notes=[*notes],
        )
        if evidence.own is None:
            evidence.notes.append(
                f"There is no experiment {first.experiment} here to say whether these runs are shortened."
            )
        if others := [what for other, what in beside.items() if other[0] == name[0]]:
            evidence.notes.append(f"Here only to be compared with, without an audit of their own: {'; '.join(others)}.")
        found.append(evidence)
    return found


def _versus(name: Name, groups: dict[Name, Runs], settings: dict[Name, Settings]) -> dict[tuple[str, ...], Name | None]:
    """The configuration that each `versus` of these runs' comparisons leads to; None where no folder has it."""
    found: dict[tuple[str, ...], Name | None] = {}
    for comparison in _comparisons(next(iter(groups[name].values()))).values():
        if overrides := tuple(comparison.versus):
            wanted = _with(name[0], settings[name], overrides)
            matches = (other for other in groups if other[0] == name[0] and without_aside(settings[other]) == wanted)
            found[overrides] = next(matches, None)
    return found


def _versus_only(versus: dict[Name, dict[tuple[str, ...], Name | None]]) -> dict[Name, str]:
    """The configurations that others are compared with, and in words which. Two that are each other's stay."""
    targets = [
        (name, other, overrides)
        for name, of in versus.items()
        for overrides, other in of.items()
        if other not in (None, name)
    ]
    aimed_at = {other for _, other, _ in targets}
    return {
        other: f"the runs of {' '.join(overrides)}"
        for name, other, overrides in targets
        if other is not None and name not in aimed_at
    }


def _controls(settings: dict[Name, Settings]) -> dict[Name, str]:
    """The configurations that are controls of another one here, and in words which. Self-KD is not recognised."""
    found = {}
    for name, here in settings.items():
        values = flat(here)
        for setting, made, what in (
            ("baseline.label_smoothing", bool(values.get("baseline.label_smoothing")), "label smoothing"),
            ("teacher.", values.get("teacher.kind") == "random", "untrained teacher"),
        ):
            rest = _except(setting, here)
            if made and any(
                other != name and other[0] == name[0] and _except(setting, settings[other]) == rest
                for other in settings
            ):
                found[name] = f"the control runs of {'an ' if what.startswith('u') else ''}{what}"
    return found


def _except(setting: str, settings: Settings) -> Settings:
    return {key: value for key, value in without_aside(settings).items() if not key.startswith(setting)}


def _groups(runs: list[Run]) -> tuple[dict[Name, Runs], list[str]]:
    """The runs by experiment and configuration, each group by seed; and in words what was left out."""
    groups: dict[Name, Runs] = {}
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


def _with(experiment: str, settings: Settings, overrides: tuple[str, ...]) -> Settings | None:
    """The settings under overrides; None where the experiment that would tell them is not here.

    An override that chooses a group, method=kd say, sets what it sets in the experiment itself.
    """
    changed = without_aside(settings)
    if all(key(override) in changed for override in overrides):
        return changed | {key(o): OmegaConf.select(OmegaConf.from_dotlist([o]), key(o)) for o in overrides}
    own, other = own_settings(experiment), own_settings(experiment, overrides)
    if own is None or other is None:
        return None
    before, after = without_aside(own), without_aside(other)
    chosen = tuple(f"{below(override)}." for override in overrides)
    names = {name for name in {**changed, **before, **after} if name.startswith(chosen)}
    names |= {name for name in {**before, **after} if before.get(name) != after.get(name)}
    kept = {name: value for name, value in changed.items() if name not in names}
    return kept | {name: after[name] for name in names if name in after}
