"""A task as a job of SLURM: what is asked for it, how it is submitted (by submitit), what runs on the node."""

import io
import json
import os
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from kd.check import integer, number
from kd.errors import ConfigError
from kd.files import LOG, write_json
from kd.sweep.task import DONE, ELSEWHERE, FAILED, Outcome, Task
from kd.sweep.work import UNEXPECTED, perform

#: SLURM checks time limits once a minute, so that a signal may come so much earlier than asked for
EARLY_S = 60
GONE_S = 60  # how long the processes of a job outlive the first of them to end
MAX_ARRAY = 1000  # SLURM's own default is MaxArraySize=1001
#: of an outcome, what a job writes down. submitit's own pickle is never read: a sweep's folder may be from anywhere
KEPT = {"state": str, "status": int, "error": str, "where": str, "seconds": float, "said": str}
#: variables of sbatch that win over what is written in the submitted script
OVERRIDING = {
    "timeout_min": "SBATCH_TIMELIMIT", "partition": "SBATCH_PARTITION", "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS", "constraint": "SBATCH_CONSTRAINT", "exclude": "SBATCH_EXCLUDE",
}  # fmt: skip
CHOSEN = ("partition", "account", "qos", "constraint", "exclude")  # texts, handed to sbatch as they are


class Shape(NamedTuple):
    """The processes of one task: data-parallel training has one per device."""

    nodes: int
    processes: int  # of each node


def shape(task: Task) -> Shape:
    """The processes that a task needs. Raises `ConfigError` if its configuration does not say how many."""
    trainer = task.config["trainer"]
    devices = trainer.get("devices", 1)
    if isinstance(devices, list | tuple):
        devices = len(devices)
    if trainer.get("strategy", "auto") != "ddp" and not isinstance(devices, int):
        devices = 1  # `auto` takes what the job was given
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ConfigError(
            f"trainer.devices={devices} does not say how many GPUs of a node to ask SLURM for. Give a number from 1 up."
        )
    return Shape(trainer.get("num_nodes", 1), devices)


@dataclass(frozen=True)
class Request:
    """What is asked of SLURM for each job. Raises `ConfigError` for values that cannot be."""

    timeout_min: int = 240
    gpus_per_job: int = 1
    cpus_per_job: int = 1
    mem_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    max_timeouts: int = 20
    signal_delay_s: int = 120
    setup: Sequence[str] = ()
    additional_parameters: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        integer("hydra.launcher.timeout_min", self.timeout_min, low=1)
        integer("hydra.launcher.gpus_per_job", self.gpus_per_job)
        integer("hydra.launcher.cpus_per_job", self.cpus_per_job, low=1)
        integer("hydra.launcher.max_timeouts", self.max_timeouts)
        integer("hydra.launcher.signal_delay_s", self.signal_delay_s, low=1)
        if self.mem_gb is not None:
            number("hydra.launcher.mem_gb", self.mem_gb, above=0)
        if isinstance(self.setup, str) or not all(isinstance(line, str) for line in self.setup):
            raise ConfigError(
                f"Expected `hydra.launcher.setup` to be a list of lines of shell, but got {self.setup!r}."
            )
        texts = {key: getattr(self, key) for key in CHOSEN}
        texts |= {"additional_parameters": " ".join(map(str, chain(*(self.additional_parameters or {}).items())))}
        for key, text in texts.items():  # what follows a line break would be a line of shell in the submitted script
            if not str(text).isprintable():
                raise ConfigError(f"Expected `hydra.launcher.{key}` to have no line breaks, but got {text!r:.200}.")
        if self.timeout_min * 60 <= self.signal_delay_s + EARLY_S:
            least = (self.signal_delay_s + EARLY_S) // 60 + 1
            raise ConfigError(
                f"hydra.launcher.timeout_min={self.timeout_min} leaves no time to train: a job is warned and requeued "
                f"signal_delay_s={self.signal_delay_s} seconds before its limit, or up to {EARLY_S} seconds earlier. "
                f"Give at least {least}."
            )

    def parameters(self, name: str, processes: Shape, parallel: int) -> dict[str, Any]:
        """The same in submitit's words."""
        gpus = self.gpus_per_job * processes.processes
        srun = [f"--cpus-per-task={self.cpus_per_job}"]  # srun has not inherited it since SLURM 22.05
        if processes != Shape(1, 1):
            # the others would wait for one that is lost, or has ended by itself with an error as its outcome
            srun += ["--kill-on-bad-exit=1", f"--wait={GONE_S}"]
        given = {
            "job_name": name,
            "time": self.timeout_min,
            "signal_delay_s": self.signal_delay_s,
            "nodes": processes.nodes,
            "ntasks_per_node": processes.processes,
            "cpus_per_task": self.cpus_per_job,
            "gpus_per_node": gpus or None,
            "mem": f"{round(self.mem_gb * 1024)}M" if self.mem_gb else None,
            "array_parallelism": parallel,
            "srun_args": srun,
            "setup": self._setup(),
            "additional_parameters": {"requeue": True, **(self.additional_parameters or {})},
        }
        chosen = {key: getattr(self, key) for key in CHOSEN}
        return {key: value for key, value in {**given, **chosen}.items() if value is not None}

    def _setup(self) -> list[str]:
        """Lines of shell before each job: the user's, and what makes the node import this very package."""
        root = shlex.quote(str(Path(__file__).resolve().parents[3]))
        return [
            f"export OMP_NUM_THREADS={self.cpus_per_job}",
            *self.setup,
            f'export PYTHONPATH={root}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        ]


class Requeued:
    """What a job does: its task, and the same again when SLURM has requeued it."""

    def __init__(self, work: Callable[[Task], Outcome], task: Task) -> None:
        self.work, self.task = work, task

    def __call__(self) -> None:
        from submitit import JobEnvironment

        # SLURM signals all processes of a job; forked data workers have submitit's handler too, and must not requeue
        sign = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
        os.register_at_fork(after_in_child=lambda: signal.signal(sign, signal.SIG_IGN))
        for torn in JobEnvironment().paths.folder.glob(f"{JobEnvironment().job_id}_*.save_tmp"):
            torn.unlink(missing_ok=True)  # killed while it wrote, and submitit refuses to write again
        outcome = self.work(self.task)
        write_json(_outcome_file(JobEnvironment().paths), {key: getattr(outcome, key) for key in KEPT})

    def checkpoint(self) -> Any:
        """Called by submitit before it requeues the job: a training has written its checkpoint (`kd.signals`)."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Jobs:
    """Submits tasks as jobs and reads what they leave in a folder that all nodes share."""

    folder: Path
    name: str
    request: Request

    def submit(self, tasks: Sequence[Task], processes: Shape, parallel: int) -> list[str]:
        """Submit at most `MAX_ARRAY` tasks as one array; returns the ids of their jobs. Raises `SubmissionError`."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        assert len(tasks) <= MAX_ARRAY
        executor = submitit.SlurmExecutor(folder=self.folder, max_num_timeout=self.request.max_timeouts)
        executor.update_parameters(**self.request.parameters(self.name, processes, parallel))
        with _plain_environment(self.request), redirect_stderr(io.StringIO()):  # submitit prints what it raises too
            try:
                return [job.job_id for job in executor.submit_array([Requeued(perform, task) for task in tasks])]
            except (FailedJobError, FailedSubmissionError) as error:
                raise SubmissionError(" ".join(str(error).replace("sbatch: error: ", "").split())) from error

    def ended(self, job: str) -> bool:
        """Whether a job has left its outcome."""
        return _outcome_file(self._paths(job)).is_file()

    def outcome(self, job: str, task: Task) -> Outcome:
        """The outcome that a job has left; of several processes the first one's."""
        try:
            kept = json.loads(_outcome_file(self._paths(job)).read_text(encoding="utf-8"))
            if kept["state"] not in (DONE, FAILED, ELSEWHERE):
                raise ValueError(f"state {kept['state']!r}")
            return Outcome(task, **{key: _of_type(kind, kept[key]) for key, kind in KEPT.items()})
        except (OSError, ValueError, LookupError, TypeError) as error:
            return self.failure(job, task, f"has left an outcome that cannot be read ({type(error).__name__}: {error})")

    def failure(self, job: str, task: Task, said: str, node: str = "") -> Outcome:
        """The outcome of a job that has left none."""
        task.mark.unlink(missing_ok=True)  # nobody works on it any more
        logs = f"what it printed: {task.folder / LOG}, {self._paths(job).stderr}"
        return Outcome(task, FAILED, UNEXPECTED, f"SLURM job {job} {said}; {logs}", node)

    def _paths(self, job: str) -> Any:
        from submitit.core.utils import JobPaths

        return JobPaths(self.folder, job_id=job)


def _outcome_file(paths: Any) -> Path:
    return Path(paths.result_pickle).with_suffix(".json")


def _of_type(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} instead of {kind.__name__}")
    return value


class SubmissionError(Exception):
    """SLURM does not take jobs: what sbatch said."""


@contextmanager
def _plain_environment(request: Request) -> Iterator[None]:
    """Submit as from a login shell, also from inside of a job, whose variables would win over what is asked for."""
    inside = "SLURM_JOB_ID" in os.environ
    mine = {variable for key, variable in OVERRIDING.items() if getattr(request, key) is not None}
    mine |= {"SBATCH_JOB_NAME", "SBATCH_SIGNAL", "SBATCH_ARRAY_INX", "SBATCH_NO_REQUEUE", "SBATCH_OPEN_MODE"}
    hidden = {
        key: os.environ.pop(key)
        for key in list(os.environ)
        if key in mine or (inside and key.startswith(("SLURM_", "SUBMITIT_")) and key != "SLURM_CONF")
    }
    try:
        yield
    finally:
        os.environ.update(hidden)
