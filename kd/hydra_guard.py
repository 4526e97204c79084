"""What Hydra reads is checked before Hydra acts on it: it calls what the `hydra` part of a configuration names."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import hydra._internal.hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from omegaconf import DictConfig, OmegaConf

from kd import plain_yaml, trust
from kd.errors import ConfigError

#: what Hydra itself builds of a configuration: its own defaults and our launchers and searches
OF_HYDRA = {
    "launcher": (
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "kd.sweep.ray.RayLauncher",
        "kd.sweep.slurm.SlurmLauncher",
    ),
    "sweeper": ("hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "kd.sweep.search.Settings"),
}
#: keys of a launcher that only a person may set, and what they do
TYPED = {
    "setup": "would be run by a shell",
    "additional_parameters": "would be run by a shell",
    "address": "names a Ray, whose answers may be code",
}
#: keys of Hydra's logging where it is switched off
LOGGING = {"version", "root", "disable_existing_loggers"}
ENVIRONMENT = re.compile(r"\$\{oc\.env:\w+\}", re.ASCII)  # what it gives is text


class CheckedLoader(ConfigLoaderImpl):
    """Reads configurations. Raises `ConfigError` for what is no plain YAML, and for what Hydra must not call."""

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        try:
            loaded = super().load_configuration(*args, **kwargs)
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            place = f" in {mark.name}, line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or type(error).__name__
            raise ConfigError(f"A configuration file cannot be read{place}: {problem}. Write plain YAML.") from error
        content = OmegaConf.to_container(loaded.hydra, resolve=False)
        assert isinstance(content, dict)
        check(content)
        return loaded

    def _process_config_searchpath(self, config_name: Any, parsed_overrides: Any, repo: Any) -> None:
        initialize = repo.initialize_sources

        def checked(places: ConfigSearchPath) -> None:
            given = [place for place in places.get_path() if str(place.provider).startswith("hydra.searchpath")]
            check_search_path(str(place.path) for place in given)
            initialize(places)

        repo.initialize_sources = checked
        super()._process_config_searchpath(config_name, parsed_overrides, repo)


def install() -> None:
    """Let Hydra read configurations with the checks; it offers no hook between reading and calling."""
    hydra._internal.hydra.ConfigLoaderImpl = CheckedLoader  # type: ignore[attr-defined]
    plain_yaml.install()


def check(content: Mapping[Any, Any]) -> None:
    """Hold Hydra's own part of a configuration against what may be in it: Hydra calls it before a run begins.

    Raises `ConfigError` for callbacks and plugins that are not allowed, for environment variables, for logging of its
    own, and for lines of shell and another machine's Ray that were not typed.
    """
    for name in ("job", "job_logging", "hydra_logging"):  # as below: what they stand for can change after this check
        if isinstance(content.get(name), str):
            raise ConfigError(f"`hydra.{name}`={content[name]!r:.200} is computed. Write it out.")
    for name, known in OF_HYDRA.items():
        node = content.get(name, {"_target_": known[0]})
        if not isinstance(node, str) and (target := (node or {}).get("_target_")) not in known:
            raise ConfigError(
                f"`hydra.{name}._target_`={target!r:.200} cannot do a sweep here. Known: hydra/launcher=basic (one job "
                "after the other), ray (GPUs or slots of a machine or a cluster), slurm; hydra/sweeper=basic (every "
                "combination), optuna (a search)."
            )
    for place, node in trust.nodes(content, "hydra"):
        target = node.get("_target_")
        allowed = OF_HYDRA.get(place.removeprefix("hydra."), ())
        if target is not None and target not in allowed and not trust.inside(str(target), trust.trusted()):
            raise ConfigError(trust.refusal(place, target, f"is none of Hydra's or ours: it {trust.WHY}"))
    for part in ("callbacks", "launcher", "sweeper"):  # an interpolation would bring in a `_target_` after this check
        for place, text in _texts(content.get(part), f"hydra.{part}"):
            if "${" in ENVIRONMENT.sub("", text):
                raise ConfigError(
                    f"`{place}`={text!r:.200} is computed: there only ${{oc.env:NAME}} may be. Write it out."
                )
    for name in ("job_logging", "hydra_logging"):  # handlers open files, and `ext://` values import what they name
        if extra := sorted(map(str, set(content.get(name) or {}) - LOGGING)):
            raise ConfigError(
                f"`hydra.{name}.{extra[0]}` sets up Hydra's logging, which is switched off here. Remove it."
            )
    overrides = (content.get("overrides") or {}).get("hydra") or []
    typed = {override.lstrip("+").partition("=")[0] for override in overrides}
    for key, what in TYPED.items():
        if (content.get("launcher") or {}).get(key) and f"hydra.launcher.{key}" not in typed:
            raise ConfigError(
                f"`hydra.launcher.{key}` {what}, and comes from a file. If you have read it, say it on the command "
                f"line: 'hydra.launcher.{key}=...'."
            )
    if variables := (content.get("job") or {}).get("env_set"):
        raise ConfigError(
            f"`hydra.job.env_set` would change the environment ({', '.join(map(str, variables))}). Set variables in "
            "your shell instead."
        )


def check_search_path(places: Iterable[str]) -> None:
    """Raise `ConfigError` for a place of Hydra's that names a package: looking there imports it."""
    for place in places:
        scheme, _, package = place.partition("://")
        if scheme == "pkg" and not trust.inside(package, trust.trusted()):
            raise ConfigError(
                trust.refusal("hydra.searchpath", place, f"is a package: looking there {trust.WHY}", package)
            )


def _texts(content: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every text in a configuration that is a value, with its dotted place."""
    if isinstance(content, str):
        yield where, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _texts(value, f"{where}.{key}")
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _texts(value, where)
