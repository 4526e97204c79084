"""What a dashboard has to do for `kd.tracking.tracking`, and what it is told of a training."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


@dataclass(frozen=True)
class Run:
    """One training, as a dashboard shows it."""

    label: str  # names it within the run folder: teacher, baseline, student, student-initial, ...
    arm: str
    name: str  # for people
    group: str
    tags: list[str]
    columns: dict[str, Any]  # what runs are compared by, see `kd.tracking.names`
    content: dict[str, Any]  # columns, the whole configuration, and where the network is


class Backend(Protocol):
    """A dashboard. Each training has a log of its own, known by its label."""

    hint: str  # where to look, for the user
    errors: tuple[type[Exception], ...]  # what it may stumble over; that must not stop a run

    def knows(self, label: str) -> bool:
        """Whether an earlier process has begun this training's log, from this run folder."""

    def start(self, run: Run) -> Logger:
        """Begin a training's log. What an earlier process has logged of it is given to it again: no point twice."""

    def finish(self, run: Run, scalars: dict[str, float], result: dict[str, Any]) -> None:
        """Log an evaluated arm's final metrics; `result` is result.json."""

    def close(self) -> None:
        """Close all logs, whatever has become of the training. May be called twice."""


class Points(Logger):
    """A Lightning logger that hands its points on; the configuration goes another way."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    @property
    def name(self) -> str:
        return self.label

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None, "a point has its step"
        self.log(dict(metrics), step)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log one point: the epoch's means of one split or of both, at the step that ended the epoch."""
        raise NotImplementedError

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration is logged when the run starts."""
