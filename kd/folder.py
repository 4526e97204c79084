"""The run folder: it follows from the configuration, so that the same command finds the same folder."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from kd.errors import ConfigError
from kd.files import CONFIG, ELSEWHERE, FULL, RESULT, TRAINER_ELSEWHERE, write_text
from kd.schema import RunConfig

MAX_NAME = 100
#: overrides that a folder is not named after, because they decide no result
UNNAMED = (
    *("data.root", "teacher.cache", "teacher.allow_weak", "trainer", "trainer.devices"),
    *(f"trainer.{name}" for name in TRAINER_ELSEWHERE),
)


def config_hash(config: RunConfig) -> str:
    """Hash of everything in a configuration that decides the result."""
    return hashlib.sha256(deciding(config).encode()).hexdigest()[:8]


def deciding(config: RunConfig) -> str:
    """Everything in a configuration that decides the result, as one text."""
    content = {name: value for name, value in plain(config).items() if name not in ELSEWHERE}
    if config.fork is not None:
        content["fork"] = config.fork["sha256"]
    content["teacher"]["cache"] = "auto"  # whether logits are computed or found, they are the same
    content["data"] = {name: value for name, value in config.data.items() if name != "root"}
    # the processes of a data-parallel run share the work of one, and its result
    content["trainer"] = {k: v for k, v in content["trainer"].items() if k not in TRAINER_ELSEWHERE}
    del content["teacher"]["allow_weak"]  # decides whether there is a result
    content["trainer"]["compile"] = config.trainer.compile == "on"
    if config.trainer.strategy == "ddp":
        content["trainer"]["devices"] = 1
    return json.dumps(content, sort_keys=True, default=str)


def plain(config: RunConfig) -> dict[str, Any]:
    """A configuration as plain values; one without a fork is as it was before there were any."""
    content = asdict(config)
    if config.fork is None:
        del content["fork"]
    return content


def name_fork(raw: DictConfig) -> None:
    """Let `fork=true` be the folder that hydra.run.dir names."""
    if OmegaConf.select(raw, "fork") is True and _given_folder() is not None:
        raw.fork = HydraConfig.get().run.dir


def run_folder(config: RunConfig) -> Path:
    """Where a run's files go. `force` takes the first free folder, so that no result is overwritten.

    A run that starts from another one's weights goes beside that one's folder, if it was given the same.
    """
    digest = config_hash(config)
    given = _given_folder()
    if given is not None:
        folder = given
        if config.fork is not None and given.resolve() == Path(config.fork["folder"]).resolve():
            folder = given.with_name(f"{given.name}-fork-{digest}")
        if not config.force:
            _refuse_foreign_result(folder, digest)
            if not (folder / RESULT).is_file():
                refuse_changed(folder, config)
    else:
        parent = Path("outputs") / config.experiment
        # the words before the hash are for people: the same configuration may have been written another way
        found = sorted(parent.glob(f"*-{digest}"))
        folder = found[0] if found else parent / f"{short(HydraConfig.get().overrides.task)}-{digest}"
    return unused(folder) if config.force else folder


def unused(folder: Path) -> Path:
    """The folder, or if it has a result the first of its kind that has none: `default-63835d67-2`."""
    if not (folder / RESULT).is_file():
        return folder
    number = next(n for n in range(2, 10**6) if not (folder.parent / f"{folder.name}-{n}" / RESULT).is_file())
    return folder.parent / f"{folder.name}-{number}"


def finished(folder: Path, digest: str) -> dict[str, Any] | None:
    """The result of a finished run in this folder, or None."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_done = isinstance(result, dict) and result.get("status") == "done" and result.get("config_hash") == digest
    return result if is_done else None


def find_finished(config: RunConfig) -> Path | None:
    """The folder of the finished run of this configuration, wherever below `outputs` it ran: alone or in a sweep."""
    digest, parent = config_hash(config), Path("outputs") / config.experiment
    found = [*sorted(parent.glob(f"*-{digest}")), *sorted(parent.glob(f"sweep-*/*-{digest}"))]
    return next((folder for folder in found if finished(folder, digest)), None)


#: settings that an unfinished run may be continued with: its length, its logs and its hardware
MAY_CHANGE = (
    *(name for name in ELSEWHERE if name != "store"),
    *("data.root", "data.num_workers", "claim", "store", "teacher.cache", "trainer.max_epochs", "fork.folder"),
    *(f"trainer.{name}" for name in ("accelerator", "devices", "threads", "compile", *TRAINER_ELSEWHERE)),
)


def refuse_changed(folder: Path, config: RunConfig) -> None:
    """Raise `ConfigError` if an unfinished run in a folder has another configuration, with the difference."""
    before, now = _begun(folder), _flat(OmegaConf.to_container(OmegaConf.create(plain(config))))
    if not before:
        return
    lines = [
        f"  {key}: {before[key]} -> {now[key]}"
        for key in sorted(before.keys() & now.keys())  # a version may know other keys
        if before[key] != now[key] and not any(key == one or key.startswith(f"{one}.") for one in MAY_CHANGE)
    ]
    lines += [f"  {key}: {before[key]} -> (gone)" for key in sorted(before.keys() - now.keys()) if _is_open(key)]
    lines += [f"  {key}: (new) -> {now[key]}" for key in sorted(now.keys() - before.keys()) if _is_open(key)]
    if lines:
        raise ConfigError(
            f"{folder} holds an unfinished run of another configuration:\n" + "\n".join(lines) + "\nOnly the number of "
            "epochs, logging and hardware may change. Give another folder, or the settings as they were; or add "
            "fork=true for a new run beside it, whose student and baseline start from this one's student."
        )


def lengthened(folder: Path, config: RunConfig) -> str | None:
    """How the number of epochs of an unfinished run in a folder changes, `3 -> 5`; None if it does not."""
    before, now = _begun(folder).get("trainer.max_epochs"), config.trainer.max_epochs
    return None if before in (None, now) or (folder / RESULT).is_file() else f"{before} -> {now}"


def _begun(folder: Path) -> dict[str, Any]:
    """The dotted settings that a folder's run was begun with; {} if there are none, or they were cut off."""
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except (OSError, UnicodeError, YAMLError, OmegaConfBaseException):
        return {}
    return _flat(loaded) if isinstance(loaded, dict) and loaded else {}


def _is_open(key: str) -> bool:
    """Whether a key belongs to a group whose keys follow from the class that is chosen."""
    return key.startswith(("data.", "student.", "teacher.model.", "method.terms.", "optim.", "fork.")) and (
        not any(key == one or key.startswith(f"{one}.") for one in MAY_CHANGE)
    )


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their values."""
    if not isinstance(content, dict) or not content:
        return {prefix.rstrip("."): content}
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= _flat(value, f"{prefix}{name}.")
    return found


def prepare(folder: Path, config: RunConfig) -> None:
    """Make the folder and write config.yaml. Raises `ConfigError` if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG, OmegaConf.to_yaml(plain(config)))
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ConfigError(
            f"Cannot write to the run folder {folder}: {error.strerror or error}. Choose another with hydra.run.dir."
        ) from error


def _refuse_foreign_result(folder: Path, digest: str) -> None:
    if (folder / RESULT).is_file() and finished(folder, digest) is None:
        raise ConfigError(
            f"{folder} holds the result of another configuration. Give another folder, or force=true for one "
            "beside it, or fork=true for one beside it whose student and baseline start from that run's student."
        )


def short(overrides: Iterable[str]) -> str:
    """Overrides in a few words, `temperature-8_seed-1`, or `default`: nothing that Hydra would want quoted."""
    words = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key.partition(".")[0] not in ("experiment", *ELSEWHERE) and key not in UNNAMED:
            words.append(f"{key.rpartition('.')[2]}-{value}")
    text = re.sub(r"[^\w.+-]+", "-", "_".join(words)).strip("-") or "default"
    return text[:MAX_NAME]


def _given_folder() -> Path | None:
    """The folder that the user named with hydra.run.dir; None if it follows from the configuration."""
    hydra = HydraConfig.get()
    return None if hydra.run.dir == "." else Path(hydra.runtime.output_dir)
