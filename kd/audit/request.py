"""What the user asked the audit for."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from kd.errors import ConfigError

PREFIX = "python -m kd.audit"
MOST_SEEDS = 1000
SEEDS = f"a number of seeds up to {MOST_SEEDS} (seeds=6 means 0 to 5) or a list of different ones (seeds=[3,4,5])"
#: what the audit decides itself: override, and what to write instead
OURS = {
    "seed": "the audit sets the seed of every run; write seeds=6, or seeds=[3,4,5]",
    "force": "an audit never repeats a finished run; train one anew with python -m kd.run ... force=true",
    "hydra.run.dir": "every run of an audit has a folder of its own; write out=FILE to place the audit",
}


@dataclass(frozen=True)
class Request:
    """Either an experiment with seeds, or folders of finished runs."""

    given: list[str]
    experiment: str | None
    folders: list[Path]
    seeds: list[int]
    controls: bool
    out: Path | None
    overrides: list[str]


def key(override: str) -> str:
    """The key of a Hydra override."""
    return override.lstrip("+~").partition("=")[0]


def below(override: str) -> str:
    """The key below which an override that chooses a group sets things: model@student=mlp does so below student."""
    return key(override).rpartition("@")[2].replace("/", ".")


def parse(given: list[str]) -> Request:
    """Read the command's arguments. Raises `ConfigError` for what no audit can mean; overrides are checked later."""
    settings = {name: [a.partition("=")[2] for a in given if a.startswith(f"{name}=")] for name in OWN}
    for name, values in settings.items():
        if len(values) > 1:
            raise ConfigError(f"`{name}` is given {len(values)} times: {', '.join(values)}. Give it once.")
    experiment, seeds, controls, out = (values[0] if values else None for values in settings.values())
    overrides = [a for a in given if "=" in a and a.partition("=")[0] not in OWN]
    folders = [Path(a) for a in given if "=" not in a]
    for folder in folders:
        if str(folder).startswith("-") and not folder.exists():
            raise ConfigError(f"Unknown option {folder}. Settings are written key=value; see {PREFIX} --help.")
    for override in overrides:
        if key(override) in OURS:
            raise ConfigError(f"{override} has no place in an audit: {OURS[key(override)]}.")
    if folders and (experiment or seeds or controls or overrides):
        extra = [a for a in given if "=" in a and not a.startswith("out=")]
        raise ConfigError(
            f"Give folders of finished runs, or settings of new ones, not both: beside {folders[0]} there is "
            f"{' '.join(extra)}. Finished runs have their seeds and settings; controls need experiment=NAME."
        )
    if not folders and not experiment:
        raise ConfigError(f"Say what to audit: {PREFIX} experiment=NAME seeds=6, or {PREFIX} FOLDER...")
    return Request(
        given=given,
        experiment=experiment,
        folders=folders,
        seeds=[] if folders else _seeds("6" if seeds is None else seeds),
        controls=_boolean("controls", controls or "false"),
        out=_file(out) if out is not None else None,
        overrides=overrides,
    )


def of_runs(given: list[str]) -> list[str]:
    """The arguments that say what each run is, and nothing about the audit."""
    return [argument for argument in given if argument.partition("=")[0] not in AUDIT]


AUDIT = ("seeds", "controls", "out")
OWN = ("experiment", *AUDIT)


def _seeds(text: str) -> list[int]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_SEEDS:
        return list(range(value))
    whole = isinstance(value, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in value)
    if not whole or not value or len(set(value)) < len(value):
        raise ConfigError(f"Expected `seeds` to be {SEEDS}, but got {text!r}.")
    return list(value)


def _boolean(name: str, text: str) -> bool:
    if not re.fullmatch("true|false", text, flags=re.IGNORECASE):
        raise ConfigError(f"Expected `{name}` to be true or false, but got {text!r}.")
    return text.lower() == "true"


def _file(text: str) -> Path:
    path = Path(text)
    if not text or path.is_dir() or path.suffix != ".json":
        raise ConfigError(f"Expected `out` to name a .json file, but got {text!r}.")
    return path
