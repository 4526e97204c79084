"""The run folder: it follows from the configuration, so that the same command finds the same folder."""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from kd.errors import ConfigError
from kd.files import CONFIG, ELSEWHERE, RESULT
from kd.schema import RunConfig

MAX_NAME = 100


def config_hash(config: RunConfig) -> str:
    """Hash of everything in a configuration that decides the result."""
    content = {name: value for name, value in asdict(config).items() if name not in ELSEWHERE}
    content["data"] = {name: value for name, value in config.data.items() if name != "root"}
    canonical = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def run_folder(config: RunConfig) -> Path:
    """Where the run's files go. `force` takes the first free folder, so that no result is overwritten."""
    digest = config_hash(config)
    given, name = _given_folder(), _short_overrides()
    if given is not None:
        folder = given
        if not config.force:
            _refuse_foreign_result(folder, digest)
    else:
        parent = _sweep_folder() or Path("outputs") / config.experiment
        # the words before the hash are for people: the same configuration may have been written another way
        folder = next(iter(sorted(parent.glob(f"*-{digest}"))), parent / f"{name}-{digest}")
    if config.force and (folder / RESULT).is_file():
        number = next(n for n in range(2, 10**6) if not (folder.parent / f"{folder.name}-{n}" / RESULT).is_file())
        folder = folder.parent / f"{folder.name}-{number}"
    return folder


def finished(folder: Path, digest: str) -> dict[str, Any] | None:
    """The result of a finished run in this folder, or None."""
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.get("status") == "done" and result.get("config_hash") == digest else None


def find_finished(config: RunConfig) -> Path | None:
    """The folder of the finished run of this configuration, wherever below `outputs` it ran: alone or in a sweep."""
    digest, parent = config_hash(config), Path("outputs") / config.experiment
    found = [*sorted(parent.glob(f"*-{digest}")), *sorted(parent.glob(f"sweep-*/*-{digest}"))]
    return next((folder for folder in found if finished(folder, digest)), None)


def prepare(folder: Path, config: RunConfig) -> None:
    """Make the folder and write config.yaml. Raises `ConfigError` if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(OmegaConf.to_yaml(asdict(config)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"Cannot write to the run folder {folder}: {error.strerror or error}. Choose another with hydra.run.dir."
        ) from error


def _refuse_foreign_result(folder: Path, digest: str) -> None:
    if (folder / RESULT).is_file() and finished(folder, digest) is None:
        raise ConfigError(
            f"{folder} holds the result of another configuration. Give another folder, or force=true for one beside it."
        )


def _given_folder() -> Path | None:
    """The folder that the user named with hydra.run.dir; None if it follows from the configuration."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN or hydra.run.dir == ".":
        return None
    return Path(hydra.runtime.output_dir)


def _sweep_folder() -> Path | None:
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None


def _short_overrides() -> str:
    """The overrides in a few words, `temperature-8_seed-1`, or `default`: nothing that Hydra would want quoted."""
    words = []
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        if key.partition(".")[0] not in ("experiment", *ELSEWHERE) and key != "data.root":
            words.append(f"{key.rpartition('.')[2]}-{value}")
    text = re.sub(r"[^\w.+-]+", "-", "_".join(words)).strip("-") or "default"
    return text[:MAX_NAME]
