"""The launcher: queues tasks, waits for their jobs, finds jobs again that an earlier command has left.

What must outlive the command lies in `<sweep folder>/slurm`: pickles and logs of the jobs, and jobs.json, which says
which job does which task. The command only submits and waits: when it dies, the jobs go on. All jobs of a sweep have
one name, by which SLURM is asked for all of them at once.
"""

import hashlib
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from kd.check import integer, number
from kd.errors import ConfigError, StoreError
from kd.files import RESULT, write_json
from kd.locks import SHARED
from kd.sweep.slurm import queue
from kd.sweep.slurm.jobs import MAX_ARRAY, Jobs, Request, Shape, SubmissionError, shape
from kd.sweep.task import DONE, Launcher, Outcome, Task

LAG_S = 10.0  # a shared file system may show so late what a job has written
LOOK_S = 1.0  # between two looks for results
PATIENCE_S = 3600.0  # with a SLURM that takes no jobs any more


class SlurmLauncher(Launcher):
    """Keeps at most `max_jobs` tasks in SLURM's queue; `options` are the fields of `Request`.

    Raises `ConfigError` before anything is submitted: submitit or SLURM is missing, a value cannot be, the time limit
    leaves no time, the partition is unknown or has no GPUs.
    """

    several_machines = True

    def __init__(self, *, folder: Path | str, max_jobs: int = 256, poll_s: float = 10, **options: Any) -> None:
        self.max_jobs = integer("hydra.launcher.max_jobs", max_jobs, low=1)
        self.poll_s = number("hydra.launcher.poll_s", poll_s, above=0)
        request = Request(**options)
        _check_installed()
        queue.check_partition(request.partition, gpus=request.gpus_per_job > 0)
        folder = Path(folder).absolute()
        self.name = f"kd-{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"
        self._jobs = Jobs(folder / "slurm", self.name, request)
        self._record = folder / "slurm" / "jobs.json"
        self._flying: dict[str, Task] = {}  # by the ids of their jobs
        self._gone: dict[str, float] = {}  # when a job was first seen to have ended without a result
        self._told: set[str] = set()
        self._begun = False
        self._accepted: float | None = None  # when SLURM last took a job, or had one of ours

    def slots(self) -> int:
        return self.max_jobs

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Queue tasks as places become free; see `Launcher.run`. Raises `ConfigError` if SLURM takes none of them."""
        coming, refused = iter(tasks), list[Task]()
        asked = -self.poll_s
        while True:
            if not self._flying or time.monotonic() - asked >= self.poll_s:
                new = [*refused, *islice(coming, self.max_jobs - len(self._flying) - len(refused))]
                refused = self._queue(new) if new else []
                if not self._flying and not refused:
                    return
                self._ask()
                asked = time.monotonic()
            ended = [job for job in self._flying if self._jobs.ended(job)]
            for job in ended:
                yield self._collect(job, self._jobs.outcome(job, self._flying[job]))
            for job in self._lost():
                said, node = queue.described(job)
                yield self._collect(job, self._jobs.failure(job, self._flying[job], f"is lost: {said}", node))
            if not ended:
                time.sleep(min(LOOK_S, self.poll_s) if self._flying else self.poll_s)

    def close(self) -> None:
        """Leave the jobs to SLURM, and say how to go on with them and how to cancel them."""
        if self._flying:
            self._say(
                f"{len(self._flying)} jobs stay with SLURM. The same command goes on with them; "
                f"`scancel --user=$USER --name={self.name}` cancels them."
            )

    def _queue(self, tasks: list[Task]) -> list[Task]:
        """Find the tasks' jobs, or submit them. Returns those that SLURM refuses for the time being."""
        self._jobs.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._jobs.folder / ".lock", mode=SHARED):  # another command may have joined the sweep
            try:
                recorded = self._read()
                new = sorted(self._adopt(tasks, recorded), key=shape)
                for processes, group in groupby(new, key=shape):
                    same = list(group)
                    for first in range(0, len(same), MAX_ARRAY):
                        self._submit(same[first : first + MAX_ARRAY], processes, recorded)
            except SubmissionError as refusal:
                self._put_off(refusal)
        waited_for = {id(task) for task in self._flying.values()}
        return [task for task in tasks if id(task) not in waited_for]

    def _submit(self, tasks: list[Task], processes: Shape, recorded: dict[str, str]) -> None:
        """Submit one array, and write down at once which job does which task."""
        ids = self._jobs.submit(tasks, processes, self.max_jobs)
        self._accepted = time.monotonic()
        self._flying |= dict(zip(ids, tasks, strict=True))
        recorded |= {_key(task): job for job, task in zip(ids, tasks, strict=True)}
        write_json(self._record, {"name": self.name, "jobs": recorded})
        self._say(f"In SLURM's queue: `squeue --user=$USER --name={self.name}` shows the sweep's jobs.", once=True)

    def _put_off(self, refusal: SubmissionError) -> None:
        """Let refused tasks wait: one user may submit only so much at once, and SLURM may be away for a while.

        Raises `ConfigError` if it has never taken any, or neither takes nor does anything for an hour.
        """
        if self._flying:
            self._accepted = time.monotonic()
        if self._accepted is None or time.monotonic() - self._accepted > PATIENCE_S:
            raise ConfigError(
                f"SLURM refuses the sweep's jobs: {refusal}. Change what hydra.launcher asks for, or how many jobs it "
                f"keeps in the queue (hydra.launcher.max_jobs={self.max_jobs}). The same command continues the sweep."
            ) from refusal
        self._say(f"SLURM takes no more jobs for now: {refusal}. The others are submitted later.", once=True)

    def _adopt(self, tasks: list[Task], recorded: dict[str, str]) -> list[Task]:
        """Take over jobs that an earlier command has submitted; return the tasks that have none.

        A job of this name that is not in jobs.json lost its command in the moment of its submission and may lack its
        pickle: it is cancelled.
        """
        if self._begun and not any(_key(task) in recorded for task in tasks):
            return tasks
        states = queue.states(self.name)
        if states is None:
            raise SubmissionError("`squeue` does not answer")
        queued = {job for job, state in states.items() if not state.ended}
        if not self._begun and (orphans := sorted(queued - set(recorded.values()))):
            queue.answer("scancel", *orphans)
        self._begun = True
        mine = {job: task for task in tasks if (job := recorded.get(_key(task)))}
        found = {job: task for job, task in mine.items() if job in queued or self._done_meanwhile(job, task)}
        if found:
            self._say(
                f"{len(found)} jobs were submitted by an earlier command: waiting for them, not submitting them again."
            )
        self._flying |= found
        adopted = {id(task) for task in found.values()}
        return [task for task in tasks if id(task) not in adopted]

    def _done_meanwhile(self, job: str, task: Task) -> bool:
        """Whether a job has finished its run since the command looked which runs are finished."""
        return (
            (task.folder / RESULT).is_file() and self._jobs.ended(job) and self._jobs.outcome(job, task).state == DONE
        )

    def _ask(self) -> None:
        """Ask SLURM about all jobs at once; note which have ended, and say what keeps others from starting."""
        states = queue.states(self.name) if self._flying else {}
        if states is None:
            return self._say("SLURM does not answer (`squeue` failed); waiting.", once=True)
        now = time.monotonic()
        for job in self._flying:
            state = states.get(job)
            if state is None or state.ended:
                self._gone.setdefault(job, now)
            else:
                self._gone.pop(job, None)
            if state is not None and state.stuck:
                self._say(f"Jobs cannot start: SLURM says {state.reason} (of job {job}, say).", once=True)
        return None

    def _lost(self) -> list[str]:
        """Jobs that ended a while ago and have left no result."""
        now = time.monotonic()
        late = [job for job, since in self._gone.items() if job in self._flying and now - since > LAG_S]
        return [job for job in late if not self._jobs.ended(job)]

    def _collect(self, job: str, outcome: Outcome) -> Outcome:
        self._flying.pop(job)
        self._gone.pop(job, None)
        return outcome

    def _read(self) -> dict[str, str]:
        """Which job does which task, as an earlier command or this one has written it. Raises `StoreError`."""
        if not self._record.is_file():
            return {}
        try:
            jobs = json.loads(self._record.read_text(encoding="utf-8"))["jobs"]
            if not isinstance(jobs, dict) or not all(isinstance(job, str) for job in jobs.values()):
                raise TypeError("its jobs are no texts")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{self._record} is damaged ({type(error).__name__}: {error}). Delete it: the jobs that it names are "
                "then cancelled and submitted anew, and continue from their checkpoints."
            ) from error
        return jobs

    def _say(self, text: str, *, once: bool = False) -> None:
        if not (once and text in self._told):
            print(text, file=sys.stderr, flush=True)
        self._told.add(text)


def _key(task: Task) -> str:
    return f"{task.folder} {task.network or ''} {task.name}"


def _check_installed() -> None:
    """Raise `ConfigError` unless submitit and SLURM's commands are there."""
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("hydra/launcher=slurm needs submitit: pip install submitit.")
    if missing := [
        command for command in ("sbatch", "srun", "squeue", "sinfo", "scancel") if not shutil.which(command)
    ]:
        raise ConfigError(
            f"hydra/launcher=slurm needs SLURM's commands, and there is no {missing[0]} on PATH. Start the sweep on a "
            "login node of the cluster, or choose another launcher (hydra/launcher=ray: the GPUs of one machine)."
        )
