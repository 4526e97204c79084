"""What a dashboard has to do for `kd.tracking.tracking`, and what it is told of a training."""

from dataclasses import dataclass
from typing import Any, Protocol


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

    def knows(self, label: str) -> bool:
        """Whether an earlier process has begun this training's log, from this run folder."""

    def start(self, run: Run) -> None:
        """Begin a training's log anew; what an earlier process has logged of it will be logged again."""

    def log(self, run: Run, metrics: dict[str, float], step: int) -> None:
        """Log one point of a run that was started: an epoch's means, at the step that ended the epoch."""

    def finish(self, run: Run, scalars: dict[str, float], result: dict[str, Any]) -> None:
        """Log an evaluated arm's final metrics; `result` is result.json."""

    def close(self, complete: bool) -> None:
        """Close all logs; `complete`: nothing more will be logged from this run folder. May be called twice."""
