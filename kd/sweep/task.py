"""What a sweep gives to a worker, what comes back, and what every launcher is."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.errors import ConfigError
from kd.schema import RunConfig

DONE, FAILED, ELSEWHERE = "done", "failed", "elsewhere"


@dataclass(frozen=True)
class Task:
    """One piece of work for one worker: a whole run, or a network that several runs need.

    It is pickled, so it holds plain values only: `config` is a checked configuration (`asdict` of a RunConfig), the
    paths are absolute.
    """

    name: str  # in messages; of a run the name of its folder
    config: dict[str, Any]
    folder: Path
    mark: Path  # a file that is there while somebody works on the task
    network: str | None = None  # the label of the network to train; None: the whole run
    group: str | None = None  # the sweep, for dashboards
    students: tuple[dict[str, Any], ...] = ()  # configurations of runs whose students are trained together here
    cwd: Path = field(default_factory=Path.cwd)  # where relative paths of the configuration start


@dataclass(frozen=True)
class Outcome:
    """How a task ended. `elsewhere`: another process is at it, and nothing was done here."""

    task: Task = field(repr=False)
    state: str
    status: int = 0  # the exit status that the run alone would have had
    error: str = ""
    where: str = ""
    seconds: float = 0.0
    said: str = ""  # what a person is to be told of it


class Launcher(ABC):
    """Where tasks are done. `run` may be called several times, one call after the other."""

    #: whether a run may have processes on several machines, and may name the devices of its machine
    several_machines, named_devices = False, False

    def check(self, config: RunConfig) -> None:
        """Raise `ConfigError` for a run that cannot be done here, before any is."""
        trainer = config.trainer
        if trainer.num_nodes > 1 and not self.several_machines:
            raise ConfigError(
                f"trainer.num_nodes={trainer.num_nodes}: a job of this sweep runs on one machine. Jobs of several "
                "machines need hydra/launcher=slurm."
            )
        if isinstance(trainer.devices, list) and not self.named_devices:
            raise ConfigError(
                f"trainer.devices={trainer.devices} names devices, but a job of this sweep sees only those that it is "
                f"given, numbered from 0. Say how many: trainer.devices={len(trainer.devices)}."
            )

    @abstractmethod
    def slots(self) -> int:
        """How many tasks may run at once."""

    @abstractmethod
    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Do tasks (`kd.sweep.work.perform`) and yield the outcome of each, in the order in which they end.

        Tasks are taken from the iterable only when they can be started or queued soon: a search decides the next
        one by the outcomes so far. A worker that dies makes its own task fail, never the others. When the generator is
        closed, or an exception passes through it, workers on this machine are ended (a cluster's queue may go on).
        """

    def close(self) -> None:
        """Let go of what was started for the launcher."""
