"""`python -m benchmarks.bookkeeping [JOBS...]`: what a sweep costs beside its trainings, for 1,000 to 10,000 jobs.

Every job is a no-op: it passes through everything that a real one passes through (composed, checked, hashed, its
networks looked up, its folder locked, marked and written to, sweep.json kept) but trains nothing. Each size runs in a
process and a folder of its own. Printed: milliseconds of the processor per job and part, which must not grow with the
number of jobs (of the whole command the time on the clock too, which waits for the disk: every result is synced), the
memory that a job adds to the driver, the size of sweep.json; the same command again, when all is done; and the store's
put, get and lock with that many entries.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

SIZES = (1000, 2500, 5000, 10000)
ARMS = {
    "student": {"val": {"accuracy": 0.5, "nll": 1.0}, "test": {"accuracy": 0.5}},
    "baseline": {"test": {"accuracy": 0.5}},
}


def measure(jobs: int) -> dict[str, float]:
    """Do a sweep of no-op jobs in the present folder."""
    from rich.console import Console

    from kd import run
    from kd.files import CONFIG, RESULT, write_json
    from kd.folder import config_hash
    from kd.locks import owned
    from kd.sweep import drive, networks, plan, sweep

    def conduct(config: Any, folder: Path, console: Console, group: str | None = None) -> None:
        with owned(folder):
            (folder / CONFIG).write_text(json.dumps(asdict(config)))
            content = {"status": "done", "config_hash": config_hash(config), "arms": ARMS, "wall_s": 0.0}
            write_json(folder / RESULT, content)

    run.conduct = conduct
    networks.train_network = lambda *_: None
    found: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                found[name] = found.get(name, 0.0) + time.process_time() - started

        return call

    import kd.data
    import kd.dry_run
    import kd.recipe
    import kd.store  # noqa: F401  their seconds are not the jobs'

    plan.Composer.jobs = timed("compose and check", plan.Composer.jobs)
    networks.Plans.needed = timed("look up networks", networks.Plans.needed)
    drive.Work.jobs = timed("do and record", drive.Work.jobs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    command = ["-m", "logger=csv", "latency=false", "method.temperature=1,2,4,8,20", f"seed=range(0,{jobs // 5})"]
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout, out = nowhere, sys.stdout
        started = time.perf_counter()
        assert timed("whole command", sweep.sweep)(command) == 0
        found["whole command, clock"] = time.perf_counter() - started
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / jobs
        assert timed("the same again", sweep.sweep)(command) == 0
        sys.stdout = out
    per_job = {f"{name}, ms": 1e3 * seconds / jobs for name, seconds in found.items()}
    (file,) = Path().glob("outputs/*/sweep-*/sweep.json")
    return {**per_job, "memory, kB": memory, "sweep.json, kB": file.stat().st_size / 1e3 / jobs, **store(jobs)}


def store(entries: int) -> dict[str, float]:
    """Put, get and lock that many entries of a network of four weights."""
    from torch import nn

    from kd.store import Store

    tried, network = Store("store"), nn.Linear(3, 1)
    keys = [f"{number:016x}" for number in range(entries)]
    meta = {"class_names": ["a"], "mean": None, "std": None, "model": {}}

    def lock(key: str) -> None:
        with tried.lock(key, on_wait=lambda: None):
            pass

    found = {}
    for name, action in (("put", lambda key: tried.put(key, network, meta)), ("get", tried.get), ("lock", lock)):
        started = time.process_time()
        for key in keys:
            action(key)
        found[f"store {name}, ms"] = 1e3 * (time.process_time() - started) / entries
    return found


def main(sizes: list[int]) -> None:
    columns = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            here = [sys.executable, "-m", "benchmarks.bookkeeping", "--one", str(size)]
            path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                here, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
            )
        if done.returncode:
            sys.exit(done.stderr)
        columns.append(json.loads(done.stdout))
    print(f"{'per job':<24}" + "".join(f"{size:>10,} jobs" for size in sizes))
    for name in columns[0]:
        print(f"{name:<24}" + "".join(f"{column[name]:>15.2f}" for column in columns))
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {tempfile.gettempdir()} on a local disk")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        main([int(size) for size in sys.argv[1:]] or list(SIZES))
