"""Which jobs a sweep has: every combination of its values, each composed and checked before anything runs."""

import copy
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd import cli
from kd import folder as folders
from kd.cli import SWEEP_FLAGS, compose, compose_with_hydra, is_override, message
from kd.errors import ConfigError, UserError
from kd.files import ELSEWHERE, OWN_STORE
from kd.rules import check, check_rules
from kd.schema import RunConfig
from kd.sweep.record import in_words

SHOWN = 20  # mistakes that are told one by one


@dataclass(frozen=True)
class Job:
    """One run of a sweep. `overrides` are the values that are its own; `folder` is absolute."""

    overrides: tuple[str, ...]
    config: RunConfig
    digest: str
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def words(self) -> str:
        """What is this job's own, for people."""
        return in_words(self.overrides)


@dataclass(frozen=True)
class Axis:
    """A key that is swept, and the overrides that set its values."""

    key: str
    overrides: tuple[str, ...]
    is_group: bool  # a choice of config groups must be composed, a value can be set
    override: Override  # as it was given


@dataclass(frozen=True)
class Arguments:
    """The command line of a sweep, taken apart. `hydra` has where and how it runs, `fixed` what all jobs share."""

    hydra: DictConfig
    fixed: tuple[str, ...]
    axes: tuple[Axis, ...]
    continuous: tuple[Override, ...]  # intervals, for a search
    experiment: str
    folder: Path


def read_arguments(given: Sequence[str]) -> Arguments:
    """Take the command line of a sweep apart. Raises `ConfigError`, or what Hydra raises for what it cannot read."""
    words = [argument for argument in given if argument not in SWEEP_FLAGS]
    if wrong := [word for word in words if not is_override(word)]:
        raise ConfigError(f"A sweep takes key=value and group=choice, but got {' '.join(wrong)}.")
    ours = [word for word in words if _of_hydra(word) and not word.startswith("hydra.mode=")]
    if unused := [word for word in ours if _key(word) in ("hydra.sweep.subdir", "hydra.run.dir")]:
        raise ConfigError(
            f"{_key(unused[0])} cannot be set in a sweep: a job's folder is named after what is its own, below that of "
            "the sweep, which hydra.sweep.dir names."
        )
    rest = [word for word in words if not _of_hydra(word)]
    parsed = cli.parsed(rest)
    first = [_first(override) for override in parsed]
    hydra = compose_with_hydra([*first, *ours])
    for key, values in (hydra.hydra.sweeper.get("params") or {}).items():  # of an experiment's YAML
        if key not in {override.get_key_element() for override in parsed}:
            parsed += cli.parsed([f"{key}={values}"])
    _refuse_ambiguous(parsed)
    experiment = str(hydra.hydra.runtime.choices.experiment)
    swept = [override for override in parsed if override.is_sweep_override()]
    experiments = next((o for o in swept if o.get_key_element() == "experiment"), None)
    named = "+".join(experiments.sweep_string_iterator()) if experiments else experiment
    return Arguments(
        hydra=hydra.hydra,
        fixed=tuple(str(override.input_line) for override in parsed if not override.is_sweep_override()),
        axes=tuple(_axis(override, hydra) for override in swept if override.is_discrete_sweep()),
        continuous=tuple(override for override in swept if not override.is_discrete_sweep()),
        experiment=experiment,
        folder=_folder(rest, ours, hydra, named),
    )


def grid(arguments: Arguments) -> list[tuple[str, ...]]:
    """Every combination of the axes' values. Raises `ConfigError` for an interval, which has no end of them."""
    if arguments.continuous:
        raise ConfigError(
            f"{arguments.continuous[0].input_line} has no list of values. Name some (a,b,c or range(...)), or let a "
            "search choose them: hydra/sweeper=optuna."
        )
    return list(itertools.product(*(axis.overrides for axis in arguments.axes)))


class Composer:
    """Makes checked jobs of overrides.

    Config groups are composed by Hydra, once per combination of choices. A plain value is checked in full once per
    such combination; jobs that only combine such values put them into a copy, and the rules between settings are
    checked again: a sweep of thousands of jobs is ready in seconds.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.plain = {axis.key for axis in arguments.axes if not axis.is_group}
        self.plain |= {o.key_or_group for o in arguments.continuous if o.key_or_group == o.get_key_element()}
        self._existing = {path.name[-8:]: path for path in arguments.folder.glob("*-????????") if path.is_dir()}
        self._composed: dict[tuple[str, ...], tuple[DictConfig, bool]] = {}
        self._bases: dict[tuple[str, ...], RunConfig] = {}
        self._values: dict[tuple[tuple[str, ...], str], Any] = {}

    def job(self, overrides: tuple[str, ...]) -> Job:
        """Compose and check one job. Raises `ConfigError`, or what Hydra raises."""
        config = self._config(overrides)
        digest = folders.config_hash(config)
        folder = self._existing.get(digest) or self.arguments.folder / f"{folders.short(overrides)}-{digest}"
        if config.force:  # the jobs of one round share their networks
            own = folders.unused(folder)
            round_ = own.name.removeprefix(folder.name)
            config.store.root, folder = str(self.arguments.folder / f"{OWN_STORE}{round_}"), own
        return Job(overrides, config, digest, folder)

    def _config(self, overrides: tuple[str, ...]) -> RunConfig:
        values = [override for override in overrides if _key(override) in self.plain]
        choices = tuple(override for override in overrides if override not in values)
        if choices not in self._composed:
            composed = compose([*self.arguments.fixed, *choices, *values])
            composed.experiment = composed.experiment  # its name comes from what Hydra has composed last
            self._composed[choices] = composed, bool(values) and not _others_follow(composed, self.plain)
        composed, separable = self._composed[choices]
        if not separable:
            return check(_with(composed, values))
        if choices not in self._bases:
            self._bases[choices] = check(_with(composed, values))
        config = copy.deepcopy(self._bases[choices])
        for override in values:
            _put(config, _key(override), self._typed(choices, override))
        check_rules(config)
        return config

    def _typed(self, choices: tuple[str, ...], override: str) -> Any:
        """A plain value as the configuration has it: of the type that stands there, or else converted by a check."""
        if (choices, override) not in self._values:
            value, key = _parse([override])[0].value(), _key(override)
            if type(value) not in (int, float, bool) or type(value) is not type(_get(self._bases[choices], key)):
                value = _get(check(_with(copy.deepcopy(self._composed[choices][0]), [override])), key)
            self._values[choices, override] = value
        return self._values[choices, override]

    def jobs(self, combinations: Sequence[tuple[str, ...]]) -> list[Job]:
        """Compose and check all jobs; a configuration written twice is one. Raises one error for all mistakes."""
        jobs: dict[str, Job] = {}
        mistakes: dict[str, list[str]] = {}
        for overrides in combinations:
            try:
                job = self.job(overrides)
                _refuse_confusion(jobs.setdefault(job.digest, job), job)
            except (ConfigError, HydraException, OmegaConfBaseException) as error:
                text = message(error, [*self.arguments.fixed, *overrides])
                mistakes.setdefault(text, []).append(" ".join(overrides) or "default")
        refuse(mistakes, len(combinations))
        return list(jobs.values())


def refuse(
    mistakes: dict[str, list[str]], total: int, which: str = "", kind: Callable[[str], UserError] = ConfigError
) -> None:
    """Raise one error for the mistakes found, each with the jobs that make it; nothing if there is none."""
    if not mistakes:
        return
    wrong = len({job for jobs in mistakes.values() for job in jobs})
    lines = [f"{wrong} of {total} jobs{which} cannot run, so none was started:"]
    for text, jobs in list(mistakes.items())[:SHOWN]:
        others = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
        lines.append(f"  {jobs[0]}{others}: {text}")
    if len(mistakes) > SHOWN:
        lines.append(f"  and {len(mistakes) - SHOWN} more mistakes")
    raise kind("\n".join(lines))


def _with(composed: DictConfig, values: Sequence[str]) -> DictConfig:
    """A composed configuration with plain values set, as Hydra would."""
    for override in _parse(values):
        OmegaConf.update(composed, override.key_or_group, override.value(), merge=True)
    return composed


def _others_follow(composed: DictConfig, keys: Iterable[str]) -> bool:
    """Whether some setting may be taken from one of these keys, or from a block with one, and so change with it."""
    references = " ".join(re.findall(r"\$\{([^}]*)\}", OmegaConf.to_yaml(composed)))
    return any(part in references for key in keys for part in key.split("."))


def _get(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def _put(config: Any, key: str, value: Any) -> None:
    parent, _, last = key.rpartition(".")
    holder = _get(config, parent) if parent else config
    if isinstance(holder, dict):
        holder[last] = value
    else:
        setattr(holder, last, value)


def _parse(words: Sequence[str]) -> list[Override]:
    """Overrides of a job, which sweep nothing."""
    return OverridesParser.create().parse_overrides(list(words))


def _first(override: Override) -> str:
    """An override that Hydra can compose alone: the first value of a sweep."""
    if not override.is_sweep_override():
        return str(override.input_line)
    if override.is_discrete_sweep():
        for value in override.sweep_string_iterator():
            return f"{override.get_key_element()}={value}"
        raise ConfigError(f"{override.input_line} has no value, so that the sweep would have no job.")
    interval: Any = override.value()
    return f"{override.get_key_element()}={interval.start}"


def _refuse_confusion(one: Job, other: Job) -> None:
    """Jobs of one hash are the same job, written in two ways, or else they must be told apart."""
    if one.config == other.config:
        return
    if folders.deciding(one.config) == folders.deciding(other.config):
        raise ConfigError(f"it differs from {one.words} only in settings that decide no result. Give one of them.")
    raise ConfigError(f"it has the same hash as {one.words} by chance. Do one of them in a sweep of its own.")


def _refuse_ambiguous(parsed: Sequence[Override]) -> None:
    """A key that is swept is given once, and makes a difference between jobs."""
    given: dict[str, str] = {}
    swept = {override.get_key_element().lstrip("+") for override in parsed if override.is_sweep_override()}
    for override in parsed:
        key, line = override.get_key_element().lstrip("+"), str(override.input_line)
        if key in swept and key in given:
            raise ConfigError(f"{key} is given twice: {given[key]} and {line}. Name all of its values once.")
        if key in swept and _decides_nothing(f"{key}="):
            raise ConfigError(f"{line}: {key} decides no result, so that its values make no different jobs. Give one.")
        given[key] = line


def _axis(override: Override, composed: DictConfig) -> Axis:
    key = override.get_key_element()
    values = tuple(dict.fromkeys(f"{key}={value}" for value in override.sweep_string_iterator()))
    # a mapping would be merged with the last one; a reference may be to a value that is swept
    open_ended = any(isinstance(value, dict) or "${" in str(value) for value in override.sweep_iterator())
    is_group = open_ended or key != override.key_or_group or key in composed.hydra.runtime.choices
    # asked last, because `experiment` takes its value from Hydra's own part, which is not set up yet
    is_group = is_group or OmegaConf.select(composed, key, default=None) is None
    return Axis(key, values, is_group, override)


def _of_hydra(word: str) -> bool:
    """Whether an override is of Hydra's own part, where a launcher and a sweeper are."""
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def _key(override: str) -> str:
    return override.partition("=")[0]


def _folder(jobs: list[str], ours: list[str], hydra: DictConfig, experiment: str) -> Path:
    """The sweep's folder: it follows from its jobs, not from where they run."""
    if any(word.startswith("hydra.sweep.dir=") for word in ours):
        return Path(hydra.hydra.sweep.dir).resolve()
    deciding = sorted(word for word in jobs if not _decides_nothing(word))
    digest = hashlib.sha256("\n".join(deciding).encode()).hexdigest()[:8]
    return (Path("outputs") / experiment[: folders.MAX_NAME] / f"sweep-{digest}").resolve()


def _decides_nothing(word: str) -> bool:
    if word.startswith("debug="):  # debug=smoke shortens a run
        return word in ("debug=true", "debug=false")
    key = _key(word).lstrip("+")
    return key.partition(".")[0] in ELSEWHERE or key in folders.UNNAMED
