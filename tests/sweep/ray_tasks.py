"""Tasks that stand in for runs: they leave a note of when, where and with what they were done."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd.sweep.task import DONE, Outcome, Task


def probe(task: Task) -> Outcome:
    """In place of `kd.sweep.work.perform`; the configuration says how long it takes, and how it goes wrong."""
    begun = task.mark.with_suffix(".begun")
    begun.write_text(json.dumps({"pid": os.getpid(), "host": "here", "since": "now"}))
    begun.replace(task.mark)
    note: dict[str, Any] = {"pid": os.getpid(), "cwd": str(Path.cwd()), "start": time.time()}
    note |= {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    time.sleep(task.config.get("sleep", 0.3))
    if "until" in task.config:
        wait_until(Path(task.config["until"]).exists, seconds=300)
    if task.config.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.config.get("raises"):
        raise RuntimeError("this was not foreseen")
    (task.folder / "note.json").write_text(json.dumps(note | {"end": time.time()}))
    task.mark.unlink()
    return Outcome(task, DONE)


def by_value() -> None:
    """Have Ray carry `probe` to workers, which cannot import it."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def tasks(folder: Path, number: int, name: str = "job", **config: Any) -> list[Task]:
    names = [f"{name}-{n}" for n in range(number)]
    made = [Task(name, dict(config), folder / name, folder / f"{name}.mark") for name in names]
    for task in made:
        task.folder.mkdir()
    return made


def notes(folder: Path) -> list[dict[str, Any]]:
    """What the tasks that ended have left, in the order in which they started."""
    found = [json.loads(file.read_text()) for file in folder.glob("job-*/note.json")]
    return sorted(found, key=lambda note: note["start"])


def most_at_once(found: list[dict[str, Any]]) -> int:
    return max(sum(other["start"] <= one["start"] < other["end"] for other in found) for one in found)


def alive(pid: int) -> bool:
    """Whether there is such a process, other than one that has ended and that nobody has asked about."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
