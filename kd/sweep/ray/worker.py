"""A worker of `hydra/launcher=ray`: a process that does one task after the other, on GPUs that are its own."""

import gc
import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kd
from kd.errors import ConfigError
from kd.files import LOG
from kd.locks import described
from kd.sweep.task import FAILED, Outcome, Task
from kd.sweep.work import UNEXPECTED


class Worker:
    """What runs in the worker's process. Paths in a configuration are relative to the driver's folder."""

    def __init__(self, folder: str, threads: int) -> None:
        self.folder, self.threads = folder, threads

    def do(self, perform: Callable[[Task], Outcome], task: Task) -> Outcome:
        try:
            os.chdir(self.folder)
        except OSError as error:
            return Outcome(
                task,
                FAILED,
                ConfigError.status,
                f"{os.uname().nodename} has no folder {self.folder} ({error.strerror}). All machines of a cluster must "
                "share the folder in which the sweep is started, or hydra.sweep.dir, store.root and data.root in it.",
            )
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self.threads)  # the task before may have set trainer.threads
        try:
            return perform(task)
        finally:
            _free_gpu_memory()


@dataclass(frozen=True)
class Hired:
    """A worker, as the driver knows it."""

    actor: Any
    gpus: float


def hire(gpus: float, cpus: int, *, reserve_cpus: bool) -> Hired:
    """Start a worker as soon as its GPUs (and cores) are free; what it is given to do waits until then."""
    import ray

    path = [str(Path(kd.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": str(cpus), "PYTHONPATH": os.pathsep.join(path)}
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # or it would see all that the machine has
    actor = ray.remote(Worker).options(
        num_cpus=cpus if reserve_cpus else 0,
        num_gpus=gpus,
        max_restarts=0,
        max_task_retries=0,
        runtime_env={"env_vars": environment},
    )
    return Hired(actor.remote(str(Path.cwd()), cpus), gpus)


def outcome_of(ended: Future[Outcome], task: Task) -> Outcome:
    """What has come of a task that has ended, in whatever way."""
    import ray

    try:
        outcome = ended.result()
    except ray.exceptions.RayError as error:
        outcome = Outcome(task, FAILED, UNEXPECTED, _why(error, task))
        task.mark.unlink(missing_ok=True)
    return outcome


def _why(error: Exception, task: Task) -> str:
    """Say in a few words why a worker did not end its task; Ray's own reports are a screen long."""
    import ray

    lines = str(error).strip().splitlines()
    who = _who(task)
    worker = f"The worker ({described(who)})" if who else "The worker"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        why = f"{worker} was ended by Ray: {lines[0]} Lower hydra.launcher.slots, or what a job keeps in memory."
    elif isinstance(error, ray.exceptions.RayTaskError) or "creation task" in lines[0]:
        return f"A worker cannot start or answer: {lines[-1].strip()}"
    elif code := re.search(r"exit code (\d+)", str(error)):
        why = f"{worker} ended with exit code {code[1]}."
    else:
        why = f"{worker} is gone: killed (kill -9; by the system, out of memory), crashed, or its machine is lost."
    return f"{why} What it said: {task.folder / LOG}. The same command continues it."


def _who(task: Task) -> dict[str, Any]:
    """Who took the task, if it had been taken."""
    with suppress(OSError, ValueError):
        found = json.loads(task.mark.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _free_gpu_memory() -> None:
    """Give back what the task had on a GPU: another job may share it."""
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
