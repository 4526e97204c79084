"""Weights & Biases: one run per trained arm. Local files are the truth; nothing here may stop or hang a run."""

import importlib.util
import netrc
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger

from kd.errors import ConfigError
from kd.recipe import INITIAL, Recipe
from kd.schema import LoggerConfig, RunConfig

REACH_TIMEOUT_S = 3.0
PUBLIC_SERVER = "https://api.wandb.ai"


def mode(config: LoggerConfig) -> tuple[str, str]:
    """Decide where W&B logs: "off", "offline" or "online", and one line for the user (or "").

    Never a prompt and never a hang: a server that cannot be reached, which costs the library minutes, is found within
    seconds. Raises `ConfigError` for logger=wandb without the package.
    """
    asked = config.kind == "wandb"
    if config.kind == "csv" or os.environ.get("WANDB_MODE", "").lower() == "disabled":
        return "off", ""
    if importlib.util.find_spec("wandb") is None:
        if asked:
            raise ConfigError("logger=wandb needs Weights & Biases: pip install wandb")
        return "off", "W&B: pip install wandb and `wandb login`, and runs are logged there too"
    if not _has_key():
        if asked:
            return "offline", "W&B: no login found, logging offline"
        return "off", "W&B: `wandb login` to log there too, or logger=wandb to log offline"
    if os.environ.get("WANDB_MODE", "").lower() in ("offline", "dryrun"):
        return "offline", ""
    if not _reachable():
        return "offline", f"W&B: {_server().hostname} cannot be reached, logging offline"
    return "online", ""


class Tracking:
    """The W&B runs of one `kd.run`: group = experiment, job type = arm, config = the whole resolved configuration."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.mode, self.hint = mode(config.logger)
        self.loggers: dict[str, WandbLogger] = {}  # by label, open until `finish`

    def start(self, recipe: Recipe) -> WandbLogger | None:
        """Open the run of an arm that is about to be trained; None if W&B is off."""
        if self.mode == "off":
            return None
        import wandb

        try:
            run = wandb.init(**self._arguments(recipe), settings=_settings())
        except wandb.errors.Error as error:
            self.mode, self.hint = "off", f"W&B: {error}; metrics.csv has everything"
            return None
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self.loggers[recipe.label] = WandbLogger(experiment=run)
        return self.loggers[recipe.label]

    def _arguments(self, recipe: Recipe) -> dict[str, Any]:
        """What W&B is told of an arm's run."""
        settings = self.config.logger
        return {
            "project": settings.project,
            "entity": settings.entity,
            "name": f"{self.folder.name}-{recipe.label}",
            "group": self.config.experiment,
            "job_type": recipe.view.arm,
            "tags": [*settings.tags, self.config.method.name, recipe.view.arm],
            "config": {**asdict(self.config), "arm": recipe.view.arm, "store_key": recipe.key},
            "dir": str(self.folder),
            "mode": self.mode,
            "reinit": "create_new",  # the arms' runs are open side by side until their test metrics are known
        }

    def finish(self, result: dict[str, Any]) -> None:
        """Log every arm's test metrics and tables, and close all runs. The student's run knows all arms, to compare."""
        classes = result["data"]["classes"]
        scalars = {name: _scalars(name, block["test"]) for name, block in result["arms"].items()}
        for label, logger in self.loggers.items():
            arm = label.partition("-")[0]
            run = logger.experiment
            if label.endswith(INITIAL):
                continue  # a first stage is not evaluated
            if arm in result["arms"]:
                run.log({**scalars[arm], **_tables(arm, result["arms"][arm]["test"], classes)})
            if arm == "student":
                run.summary.update({name: value for one in scalars.values() for name, value in one.items()})
        self.close()

    def close(self) -> None:
        """Close all runs, whatever has become of the training."""
        for logger in self.loggers.values():
            logger.experiment.finish()
        if self.mode == "offline" and self.loggers:
            reason = self.hint or "W&B: logging offline"
            self.hint = f"{reason}; upload with: wandb sync {self.folder / 'wandb'}/offline-run-*"
        self.loggers.clear()


def _settings() -> Any:
    import wandb

    return wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30)


def _scalars(arm: str, test: dict[str, Any]) -> dict[str, float]:
    return {f"{arm}/test/{name}": value for name, value in test.items() if isinstance(value, int | float)}


def _tables(arm: str, test: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    import wandb

    confusion = [
        [actual, predicted, count]
        for actual, row in zip(classes, test["confusion"], strict=True)
        for predicted, count in zip(classes, row, strict=True)
    ]
    accuracies = [list(row) for row in zip(classes, test["per_class_accuracy"], strict=True)]
    return {
        f"{arm}/test/confusion": wandb.Table(["actual", "predicted", "images"], confusion),
        f"{arm}/test/per_class_accuracy": wandb.Table(["class", "accuracy"], accuracies),
    }


def _server() -> Any:
    return urlparse(os.environ.get("WANDB_BASE_URL", PUBLIC_SERVER))


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(_server().hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _reachable() -> bool:
    server = _server()
    port = server.port or (80 if server.scheme == "http" else 443)
    try:
        with socket.create_connection((server.hostname, port), timeout=REACH_TIMEOUT_S):
            return True
    except OSError:
        return False
