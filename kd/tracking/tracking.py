"""The dashboards of one run. Local files are the truth; nothing here may stop or hang a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from kd.curves import LabelledLogger, read_metrics
from kd.files import METRICS
from kd.recipe import Recipe
from kd.schema import LoggerConfig, RunConfig
from kd.tracking import look, names, server
from kd.tracking.backend import Backend, Run
from kd.tracking.server import Mode
from kd.tracking.tensorboard import TensorBoard
from kd.tracking.trackio import Trackio
from kd.tracking.wandb import Wandb

Row = dict[str, str]  # of metrics.csv
Result = TypeVar("Result")


class Tracking:
    """What `logger=...` asks for: each training gets a log of its own, the student's also knows the other arms.

    `sweep` is the group's name for the jobs of a sweep; a single run's is its experiment. A training that continues
    after a cut has its log begun anew from the rows of metrics.csv: no point is lost, none comes twice. Raises
    `ConfigError` for a dashboard that cannot be.
    """

    def __init__(self, config: RunConfig, folder: Path, sweep: str | None = None) -> None:
        self.config = config
        self.folder = folder
        self.group = sweep or config.experiment
        mode = server.mode(config.logger) if config.logger.kind in ("auto", "wandb") else None
        self.backend = _backend(config.logger, folder, mode[0] if mode else "off")
        self._place = folder.parent if sweep else folder
        self._hint = look.where(config.logger, self._place, mode)
        self.runs: dict[str, Run] = {}  # by label, open until `finish`

    @property
    def hint(self) -> str:
        """One line for the user about where the logs are, or ""."""
        trouble = self.backend.trouble if isinstance(self.backend, Wandb) else ""
        return f"{trouble}; {look.upload(self._place)}" if trouble else self._hint

    def start(self, recipe: Recipe, past: Sequence[Row] = ()) -> Logger | None:
        """Begin the log of a training; `past` is what was logged before it was cut off. None without a dashboard."""
        return self._start(recipe.label, recipe.key, past)

    def finish(self, result: dict[str, Any] | None = None) -> None:
        """Log the final metrics of result.json, and close all logs, which are complete now.

        The student has a log even where its network was found in the store, so that no job of a sweep is missing; so
        have arms that an earlier process of this folder has trained before it was cut off. Without a result, of a
        network that several runs share, the curves are all there is.
        """
        if result is not None:
            self._log_result(result)
        self._close(complete=True)

    def close(self) -> None:
        """Close all logs, whatever has become of the training."""
        self._close(complete=False)

    def _log_result(self, result: dict[str, Any]) -> None:
        rows = read_metrics(self.folder / METRICS)
        for label in dict.fromkeys(row["arm"] for row in rows if row["epoch"]):
            if label not in self.runs and (label == names.STUDENT or self._known(label)):
                key = result["arms"].get(label, {}).get("store_key")
                self._start(label, key, [row for row in rows if row["arm"] == label and row["epoch"]])
        for label, run in self.runs.items():
            if label in result["arms"]:  # a first stage, or a member of a teacher, is not evaluated
                self._finish(run, result)

    def _close(self, *, complete: bool) -> None:
        self._attempt(lambda backend: backend.close(complete))
        self.runs.clear()

    def _start(self, label: str, key: str | None, past: Sequence[Row]) -> Logger | None:
        run = self._describe(label, key)
        self._attempt(lambda backend: backend.start(run))
        if self.backend is None:
            return None
        self.runs[label] = run
        logger = _Log(label, lambda metrics, step: self._attempt(lambda backend: backend.log(run, metrics, step)))
        _replay(logger, run.arm, past)
        return logger

    def _known(self, label: str) -> bool:
        return bool(self._attempt(lambda backend: backend.knows(label)))

    def _finish(self, run: Run, result: dict[str, Any]) -> None:
        scalars = names.summary(result) if run.label == names.STUDENT else names.of_arm(run.arm, result)
        self._attempt(lambda backend: backend.finish(run, scalars, result))

    def _describe(self, label: str, key: str | None) -> Run:
        arm, method = label.partition("-")[0], self.config.method.name
        columns = names.columns(self.config)
        about = {"experiment": self.config.experiment, "group": self.group, "folder": self.folder.name}
        content = {**columns, **about, "arm": arm, "store_key": key, names.WHOLE: asdict(self.config)}
        return Run(label, arm, f"{self.folder.name}-{label}", self.group, [method, arm], columns, content)

    def _attempt(self, action: Callable[[Backend], Result]) -> Result | None:
        """Do something with the dashboard, if there is one; give it up at its first error."""
        if self.backend is None:
            return None
        try:
            return action(self.backend)
        except Exception as error:  # of whatever kind: said to the user, and no reason to stop a training
            self._hint = f"logger={self.config.logger.kind}: {error}; metrics.csv has everything"
            if isinstance(self.backend, Wandb):
                self.backend.close(complete=False)
                self._hint = f"{self.hint}; {self._hint}" if self.backend.trouble else self._hint
            self.backend = None
            return None


class _Log(LabelledLogger):
    """Hands the points of one training to the dashboard."""

    def __init__(self, label: str, log: Callable[[dict[str, float], int], None]) -> None:
        super().__init__(label)
        self.log = log

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None, "a point has its step"
        self.log(dict(metrics), step)


def _backend(settings: LoggerConfig, folder: Path, mode: Mode) -> Backend | None:
    if settings.kind == "tensorboard":
        return TensorBoard(folder)
    if settings.kind == "trackio":
        return Trackio(settings.project, folder)
    return None if mode == "off" else Wandb(settings, folder, mode)


def _replay(logger: Logger, arm: str, rows: Sequence[Row]) -> None:
    """Log again what metrics.csv has."""
    for (epoch, step), points in groupby(rows, key=lambda row: (int(row["epoch"]), int(row["step"]))):
        values = {f"{arm}/{row['name']}": float(row["value"]) for row in points}
        logger.log_metrics({**values, "epoch": epoch}, step)
