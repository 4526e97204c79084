"""Work for jobs that takes no training: it notes what the job sees of its node, and ends when it is told to."""

import json
import os
import time
from pathlib import Path
from typing import Any

import kd
from kd.sweep.task import DONE, Outcome, Task

SEEN = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_PROCID", "SLURM_NTASKS")


def light_task(folder: Path, name: str, **config: Any) -> Task:
    """`attempt=n`: the n-th attempt ends after `seconds`, those before it wait to be ended; `fork`: so does a child."""
    return Task(
        name,
        {"trainer": {"devices": 1}, "attempt": 1, "seconds": 0.5, **config},
        folder / name,
        folder / f"{name}.mark",
    )


def work(task: Task) -> Outcome:
    """Stands in for `perform`."""
    task.folder.mkdir(parents=True, exist_ok=True)
    task.mark.touch()
    note = {key: os.environ.get(key) for key in SEEN} | {"pid": os.getpid(), "kd": kd.__file__, "start": time.time()}
    attempt = 1 + int(os.environ.get("SLURM_RESTART_COUNT", 0))
    path = task.folder / f"attempt-{attempt}-{note['SLURM_PROCID']}.json"
    path.write_text(json.dumps(note))
    if task.config.get("fork") and os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(60 if attempt < task.config["attempt"] else task.config["seconds"])
    path.write_text(json.dumps(note | {"end": time.time()}))
    task.mark.unlink(missing_ok=True)
    return Outcome(task, DONE)


def attempts(task: Task) -> list[dict[str, Any]]:
    """What the first processes of the attempts at a task have noted so far."""
    return [json.loads(path.read_text() or "{}") for path in sorted(task.folder.glob("attempt-*-0.json"))]
