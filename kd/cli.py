"""Between the shell and a run: Hydra's entry point, exit statuses, and messages instead of tracebacks."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from kd import leaving, secrets
from kd.check import nearest
from kd.errors import ConfigError, StoreError, UserError
from kd.files import FULL
from kd.hydra_guard import install
from kd.leaving import INTERRUPTED
from kd.parallel import let_the_leader_speak, mute_followers
from kd.rules import unknown_key
from kd.schema import RunConfig

SWEEP_FLAGS = ("-m", "--multirun")
OF_SWEEPS = ("hydra/launcher=", "hydra/sweeper=", "join=true", "sweep=")  # overrides that a single run refuses
#: with these Hydra prints something and runs nothing
INFORMATION = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")


def conf_dir() -> Path:
    """The configuration's folder: inside the installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def register_schema() -> None:
    """Make the closed root known to Hydra under the name that conf/run.yaml's defaults use, and let it read safely."""
    install()
    ConfigStore.instance().store(name="schema", node=RunConfig)


def entry(task: Callable[[DictConfig], None]) -> NoReturn:
    """Run `task` under Hydra and leave the process with the status that the outcome asks for."""
    register_schema()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the messages below are ours
    leaving.at_once()
    given = sys.argv[1:]
    mute_followers(given)
    with messages(given):
        _refuse_pickles(given)
        secrets.refuse_in_arguments(given)
    if _is_sweep(given):
        from kd.sweep.sweep import sweep

        with messages(given):
            sys.exit(sweep(given))
    sys.argv[1:] = arguments(given)

    def guarded(config: DictConfig) -> None:
        with messages(given):  # inside Hydra's job too, which announces every exception that leaves it
            _refuse_ignored(config, given)
            if of_sweeps := [argument for argument in given if argument.startswith(OF_SWEEPS)]:
                raise ConfigError(f"{of_sweeps[0]} belongs to a sweep: add -m, or leave it away for a single run.")
            task(config)

    with messages(given):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="run")(guarded)()
    sys.exit(0)


@contextmanager
def messages(given: list[str]) -> Iterator[None]:
    """Turn what a user can mend into one message and an exit status; `debug=true` shows the traceback too."""
    try:
        yield
    except KeyboardInterrupt:
        print("Interrupted. The same command continues the run.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader, `head` say, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, HydraException, OmegaConfBaseException, OSError, AssertionError) as error:
        if isinstance(error, AssertionError) and not _of_hydra(error):
            raise
        full = isinstance(error, OSError) and error.errno in FULL
        if any(argument.lower().replace("'", "") == "debug=true" for argument in given):
            traceback.print_exc()
        print(f"Error: {message(error, given)}", file=sys.stderr)
        let_the_leader_speak()
        sys.exit(error.status if isinstance(error, UserError) else StoreError.status if full else UserError.status)


def compose(given: list[str]) -> DictConfig:
    """Return the configuration that `python -m kd.run` has for these overrides; raises what it raises for bad ones."""
    config = compose_with_hydra(given)
    HydraConfig.instance().set_config(config)  # for what the configuration takes from `hydra:`
    with open_dict(config):
        del config["hydra"]
    _refuse_ignored(config, given)
    return config


def compose_with_hydra(given: list[str]) -> DictConfig:
    """The same with Hydra's own part, where a launcher and a sweeper are."""
    register_schema()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            return hydra.compose("run", overrides=arguments(given), return_hydra_config=True)
        except AssertionError as error:  # of OmegaConf, for a value where it has none of that kind
            raise ConfigError(message(error, given)) from error


def parsed(words: Sequence[str]) -> list[Override]:
    """Overrides taken apart by Hydra, which looks into the configuration's folder for `glob(...)`."""
    register_schema()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides(list(words))


def arguments(given: list[str]) -> list[str]:
    """Return Hydra's arguments for what the user typed.

    Hydra's own folders and logs are switched off: `kd.run` names the run folder after the configuration. `debug` is a
    config group, whose choice Hydra wants quoted where YAML sees a boolean.
    """
    ours = ["hydra.output_subdir=null", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    if not any(argument.startswith("hydra.run.dir=") for argument in given):
        ours.append("hydra.run.dir=.")
    flags = [argument for argument in given if argument in SWEEP_FLAGS]  # before all overrides, or Hydra stops
    rest = [_quote_debug(argument) for argument in given if argument not in flags]
    first = next((at for at, argument in enumerate(rest) if is_override(argument)), len(rest))
    return [*flags, *rest[:first], *ours, *rest[first:]]


def _is_sweep(given: list[str]) -> bool:
    """Whether many runs are asked for, and not what Hydra can say of them (--help, --cfg job)."""
    asked = {*SWEEP_FLAGS, "hydra.mode=MULTIRUN"} & set(given)
    return bool(asked) and not any(argument.partition("=")[0] in INFORMATION for argument in given)


def is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def _quote_debug(argument: str) -> str:
    return re.sub(r"^debug=(true|false)$", lambda found: f"debug='{found[1].lower()}'", argument, flags=re.IGNORECASE)


def _refuse_pickles(given: list[str]) -> None:
    """Hydra can rerun a job from a pickle, which may hold code; it takes any beginning of the option's name."""
    for argument in given:
        name = argument.partition("=")[0]
        if len(name) > len("--") and "--experimental-rerun".startswith(name):
            raise ConfigError(
                f"{name} would read a pickle, which may hold code. To repeat a run, give the folder with its "
                "config.yaml: --config-dir FOLDER --config-name config"
            )


def _refuse_ignored(config: DictConfig, given: list[str]) -> None:
    """What would have no effect must not go unnoticed."""
    chosen = next(
        (argument for argument in given if argument.startswith(("model@teacher.model=", "teacher.model."))), None
    )
    if chosen and config.teacher.kind in ("self", "ema", "virtual", "none"):
        raise ConfigError(f"{chosen} has no effect: teacher={config.teacher.kind} has no network of its own to choose.")


def message(error: Exception, given: list[str]) -> str:
    """Say what is wrong in words for the person who typed the command."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if missing := re.search(r"Could not (?:override|append to your config) '([^']+)'", text):
        key = missing[1].split("@")[0]
        return unknown_key(key, _composed_without(key, given))
    if isinstance(error, OverrideParseException):
        reason = text.splitlines()[1] if text.count("\n") else text
        return f"Cannot read {error.override!r} ({reason}). Write what you set as key=value, e.g. method.temperature=8."
    if isinstance(error, MissingConfigException):  # an OSError too
        return _unknown_choice(text)
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" for {error.filename}" if error.filename else ""
        return (
            f"No space left on device{where}. Make space where the run writes (hydra.run.dir, store.root); the same "
            "command continues the run."
        )
    if isinstance(error, OSError):
        where = f" {error.filename!r}" if error.filename else ""
        return f"Cannot use{where}: {error.strerror or error}. Choose another folder (hydra.run.dir, store.root)."
    if isinstance(error, AssertionError):
        overrides = " ".join(argument for argument in given if is_override(argument))
        return f"These settings do not fit together: {overrides} ({text}). Is one below a group without such a setting?"
    cause = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines) + (f": {cause}" if cause and cause not in text else "")


def _of_hydra(error: AssertionError) -> bool:
    """Whether Hydra or OmegaConf stumbled, over what was typed then; every other assertion is a mistake of ours."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("hydra", "omegaconf")


def _unknown_choice(text: str) -> str:
    """Turn Hydra's report of a missing group choice into one sentence and the list of known ones."""
    found = re.search(r"Could not find '([^']+)'", text)
    if found is None:
        return " ".join(text.split())
    group, _, name = found[1].rpartition("/")
    folder = conf_dir() / group
    known = sorted(p.stem for p in folder.glob("*.yaml") if not p.stem.startswith("_")) if folder.is_dir() else []
    return f"Unknown {group or 'configuration'} {name!r}.{nearest(name, known)} Known: {', '.join(known)}."


def _composed_without(key: str, given: list[str]) -> DictConfig | None:
    """Compose the configuration without the override of `key`, to learn which keys it would have had."""
    own = [a for a in given if not a.startswith(("hydra.", "hydra/"))]
    overrides = [a for a in arguments(own) if is_override(a)]
    kept = [a for a in overrides if a.lstrip("+~").partition("=")[0].split("@")[0] != key]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra.compose("run", overrides=kept)
    except (HydraException, OmegaConfBaseException, ConfigError):
        return OmegaConf.structured(RunConfig)  # type: ignore[no-any-return]
