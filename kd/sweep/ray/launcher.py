"""`hydra/launcher=ray`: the GPUs (or N slots) of one machine, or of a Ray cluster, through Ray itself.

Hydra's own Ray plugin is not used: it gives up at the first dead worker, and says nothing until the last job has ended.

A worker is a Ray actor: a process that keeps its GPU as long as it lives, since a process that has used one GPU cannot
change to another, and that does one task after the other, since importing what a run needs takes ten seconds.
"""

from collections.abc import Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from joblib import cpu_count

from kd.check import integer, number
from kd.errors import ConfigError
from kd.sweep import work
from kd.sweep.ray.session import Session, require_ray
from kd.sweep.ray.worker import Hired, hire, outcome_of
from kd.sweep.task import FAILED, Launcher, Outcome, Task


@dataclass(frozen=True)
class _Share:
    """What the sweep takes of the machine or cluster."""

    slots: int
    gpus_per_job: float
    most_gpus: float  # that one job can get: those of one machine


class RayLauncher(Launcher):
    """Keeps `slots` tasks going; conf/hydra/launcher/ray.yaml says what the arguments mean.

    Raises `ConfigError` for a value out of range, where Ray is missing, and for more GPUs than there are.
    """

    def __init__(
        self,
        folder: Path | str,
        slots: int | None = None,
        address: str | None = None,
        gpus_per_job: float | None = None,
        cpus_per_job: int = 1,
    ) -> None:
        self.folder = Path(folder)
        self.given_slots = None if slots is None else integer("hydra.launcher.slots", slots, low=1)
        self.given_gpus = None if gpus_per_job is None else number("hydra.launcher.gpus_per_job", gpus_per_job, low=0)
        if self.given_gpus is not None and self.given_gpus > 1 and self.given_gpus % 1:
            raise ConfigError(
                f"Expected `hydra.launcher.gpus_per_job` to be a fraction of one GPU or a whole number of GPUs, "
                f"but got {gpus_per_job!r}."
            )
        self.cpus_per_job = integer("hydra.launcher.cpus_per_job", cpus_per_job, low=1)
        self.address = None if address is None else str(address)
        require_ray()
        self._open: tuple[Session, _Share] | None = None
        self._idle: list[Hired] = []

    def slots(self) -> int:
        return self.given_slots or self._started()[1].slots

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        import ray

        session, share = self._started()
        coming, more = iter(tasks), True
        idle = self._idle
        busy: dict[Future[Outcome], tuple[Hired, Task]] = {}
        try:
            while True:
                while more and len(busy) < share.slots:
                    if (task := next(coming, None)) is None:
                        more = False
                    elif (gpus := _gpus(task, share)) > share.most_gpus:
                        yield Outcome(task, FAILED, ConfigError.status, _too_many(gpus, share, f"{task.name} needs"))
                    else:
                        worker = self._worker(idle, gpus, session)
                        busy[worker.actor.do.remote(work.perform, task).future()] = worker, task
                if not more and not self._may_wait(idle, busy):
                    _dismiss(idle)
                if not busy:
                    return
                # not with ray.wait, which turns what a signal's handler raises into an exit with status 1
                ended = next(iter(futures.wait(busy, return_when=futures.FIRST_COMPLETED).done))
                worker, task = busy.pop(ended)
                idle.append(worker)
                outcome = outcome_of(ended, task)
                if outcome.state == FAILED:  # it may have died, or left its GPU in a state in which every task fails
                    _dismiss(idle, worker)
                yield outcome
        finally:
            for worker, task in busy.values():
                ray.kill(worker.actor)
                task.mark.unlink(missing_ok=True)

    def close(self) -> None:
        if self._open is not None:
            _dismiss(self._idle)
            self._open[0].close()
            self._open = None

    def _started(self) -> tuple[Session, _Share]:
        """Start or find Ray, once, and see what there is."""
        if self._open is None:
            session = Session(self.address)
            try:
                self._open = session, self._share(session)
            except BaseException:
                session.close()
                raise
        return self._open

    def _share(self, session: Session) -> _Share:
        offer = session.offer()
        gpus = min(1.0, offer.most_gpus) if self.given_gpus is None else self.given_gpus
        if gpus:
            fitting = int(offer.gpus / gpus) if gpus >= 1 else int(offer.gpus) * int(1 / gpus)
        else:
            fitting = int(cpu_count() if session.is_ours else offer.cpus) // self.cpus_per_job
        share = _Share(self.given_slots or max(1, fitting), gpus, offer.most_gpus)
        if gpus > offer.most_gpus:
            raise ConfigError(_too_many(gpus, share, f"hydra.launcher.gpus_per_job={gpus:g} asks for"))
        if session.is_ours and gpus and share.slots > fitting:
            raise ConfigError(
                f"hydra.launcher.slots={share.slots} with hydra.launcher.gpus_per_job={gpus:g} is more than the "
                f"{_gpus_in_words(offer.gpus)} of this machine can hold: {fitting}. Lower one of them; with 0.5 GPUs "
                "per job two jobs share each."
            )
        return share

    def _may_wait(self, idle: list[Hired], busy: dict[Future[Outcome], tuple[Hired, Task]]) -> bool:
        """Whether workers without a task may stay for the next `run`, for they keep a GPU from nobody.

        On this machine there is room for `slots` workers of the usual size; another size may be waiting for room.
        """
        session, share = self._started()
        sizes = {worker.gpus for worker in (*idle, *(worker for worker, _ in busy.values()))}
        return session.is_ours and sizes <= {0.0, share.gpus_per_job}

    def _worker(self, idle: list[Hired], gpus: float, session: Session) -> Hired:
        """Take one that waits and has as many GPUs, else start one: where there may be no room for those that wait."""
        for worker in idle:
            if worker.gpus == gpus:
                idle.remove(worker)
                return worker
        _dismiss(idle)
        return hire(gpus, self.cpus_per_job, reserve_cpus=not session.is_ours)


def _gpus(task: Task, share: _Share) -> float:
    """How many GPUs a task needs: one for each of its trainer's devices, if it trains on GPUs at all."""
    trainer = task.config.get("trainer", {})
    if not share.gpus_per_job or trainer.get("accelerator") == "cpu":
        return 0.0
    devices = trainer.get("devices", 1)
    count = devices if isinstance(devices, int) else len(devices) if isinstance(devices, list) else 1
    return float(max(count, share.gpus_per_job)) if count > 1 else share.gpus_per_job


def _too_many(gpus: float, share: _Share, who: str) -> str:
    there = f"{_gpus_in_words(share.most_gpus)} on one machine" if share.most_gpus else "no GPU"
    return f"{who} {_gpus_in_words(gpus)}, but Ray has {there}. Lower hydra.launcher.gpus_per_job or trainer.devices."


def _gpus_in_words(number: float) -> str:
    return f"{number:g} GPU{'s' * (number != 1)}"


def _dismiss(idle: list[Hired], *only: Hired) -> None:
    """End workers that wait: all, or some. Ray frees what they have kept."""
    import ray

    for worker in only or tuple(idle):
        idle.remove(worker)
        ray.kill(worker.actor)
