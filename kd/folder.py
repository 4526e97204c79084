"""The run folder: it follows from the configuration, so that the same command finds the same folder."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from kd.errors import ConfigError
from kd.files import CONFIG, ELSEWHERE, RESULT
from kd.schema import RunConfig

MAX_NAME = 100
#: overrides that a folder is not named after, because they decide no result
UNNAMED = ("data.root", "trainer", "trainer.strategy", "trainer.devices", "trainer.num_nodes")


def config_hash(config: RunConfig) -> str:
    """Hash of everything in a configuration that decides the result."""
    return hashlib.sha256(deciding(config).encode()).hexdigest()[:8]


def deciding(config: RunConfig) -> str:
    """Everything in a configuration that decides the result, as one text."""
    content = {name: value for name, value in asdict(config).items() if name not in ELSEWHERE}
    content["data"] = {name: value for name, value in config.data.items() if name != "root"}
    # the processes of a data-parallel run share the work of one, and its result
    content["trainer"] = {k: v for k, v in content["trainer"].items() if k not in ("strategy", "num_nodes")}
    if config.trainer.strategy == "ddp":
        content["trainer"]["devices"] = 1
    return json.dumps(content, sort_keys=True, default=str)


def run_folder(config: RunConfig) -> Path:
    """Where a run's files go. `force` takes the first free folder, so that no result is overwritten."""
    digest = config_hash(config)
    given = _given_folder()
    if given is not None:
        folder = given
        if not config.force:
            _refuse_foreign_result(folder, digest)
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
