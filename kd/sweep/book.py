"""sweep.json: what has become of every job. A view for people and tools; the truth is in the jobs' folders.

    {"schema": 1, "experiment", "command", "launcher", "status": "running" | "interrupted" | "done" | "failed",
     "started", "updated", "driver": {"host", "pid", "since"}, "counts": {state: int},
     "jobs": [{"name", "overrides": [..], "seed", "config_hash", "state": "pending" | "running" | "done" | "failed" |
               "skipped", "result": null | {"val_accuracy", "test_accuracy", "baseline_test_accuracy"},
               "error": null | {"status": int, "message": str}, "attempts": int, "seconds": float | null,
               "where": str | null}]}

`skipped`: not run, because a network that it needs could not be trained (its error says which), or because a search
chose settings that do not fit together. The jobs of a search are those of its trials so far.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd import folder as folders
from kd.files import MARKS, write_json
from kd.locks import owner
from kd.sweep.plan import Job
from kd.sweep.record import FILE, read_sweep
from kd.sweep.task import DONE, FAILED, Outcome

SCHEMA = 1
PENDING, RUNNING, SKIPPED = "pending", "running", "skipped"
LEAST_PAUSE_S = 2.0
SHARE = 0.02  # of the time may go into writing the file, however long it is


@dataclass
class Record:
    """What is known of one job."""

    name: str
    overrides: list[str]
    seed: int | None  # None, as the hash: the settings cannot be a configuration
    config_hash: str | None
    state: str = PENDING
    result: dict[str, float | None] | None = None
    error: dict[str, Any] | None = None
    attempts: int = 0
    seconds: float | None = None
    where: str | None = None


class Book:
    """Keeps the records and writes sweep.json: at once at turning points, else seldom enough to stay linear.

    With `is_kept` false nothing is written: another process keeps the sweep's file.
    """

    def __init__(self, folder: Path, jobs: Iterable[Job], is_kept: bool = True, **about: Any) -> None:
        self.folder = folder
        self.is_kept = is_kept
        self.about = {"schema": SCHEMA, **about, "started": _now(), "driver": owner()}
        self.records: dict[str, Record] = {}
        self.counts: Counter[str] = Counter()
        self.best: Record | None = None  # the most accurate on validation; of equal ones the first
        self.expected = 0  # jobs that there will be: of a search more than are known
        self._before = _attempts(folder / FILE)
        self.add(jobs)
        self._pause_s, self._written = LEAST_PAUSE_S, 0.0
        self._told = False

    @property
    def total(self) -> int:
        return max(self.expected, len(self.records))

    def add(self, jobs: Iterable[Job]) -> None:
        """Take jobs in that are not known yet."""
        for job in jobs:
            if job.name not in self.records:
                self._enter(self._record(job, self._before.get(job.digest, 0)))

    def refused(self, name: str, overrides: Iterable[str], reason: str) -> None:
        """Note a choice of a search that cannot be a job."""
        if name not in self.records:
            self._enter(Record(name, list(overrides), None, None, SKIPPED, error={"status": 2, "message": reason}))

    def _enter(self, record: Record) -> None:
        self.records[record.name] = record
        self.counts[record.state] += 1
        self._compare(record)

    def _record(self, job: Job, attempts: int) -> Record:
        record = Record(job.name, list(job.overrides), job.config.seed, job.digest, attempts=attempts)
        if (result := folders.finished(job.folder, job.digest)) and not job.config.force:
            record.state, record.result, record.seconds = DONE, _measured(result), result.get("wall_s")
        return record

    def pending(self, jobs: Iterable[Job]) -> list[Job]:
        return [job for job in jobs if self.records[job.name].state == PENDING]

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Note how an attempt at a job ended."""
        record = self.records[job.name]
        self._move(record, outcome.state)
        record.attempts += 1
        record.seconds, record.where = round(outcome.seconds, 3), outcome.where
        record.error = {"status": outcome.status, "message": outcome.error} if outcome.state == FAILED else None
        if outcome.state == DONE:
            result = folders.finished(job.folder, job.digest)
            assert result is not None, "a job that is done has a result"
            record.result = _measured(result)
            self._compare(record)

    def skip(self, job: Job, reason: str) -> None:
        """Note that a job cannot be run because of another's failure."""
        record = self.records[job.name]
        self._move(record, SKIPPED)
        record.error = {"status": 0, "message": reason}

    def _move(self, record: Record, state: str) -> None:
        self.counts[record.state] -= 1
        self.counts[state] += 1
        record.state = state

    def _compare(self, record: Record) -> None:
        """Let a job with a result be the best, if it is: no look at all the others whenever one ends."""
        if _validated(record) > (_validated(self.best) if self.best else -1.0):
            self.best = record

    def running(self) -> set[str]:
        """The names of the tasks that somebody works on now."""
        with suppress(OSError):
            return {path.stem for path in (self.folder / MARKS).iterdir() if path.suffix == ".json"}
        return set()

    def write(self, status: str | None = None) -> None:
        """Write sweep.json; without a status only if it has not been written for a while. Never raises for a full disk:
        every result is in its own folder."""
        now = time.monotonic()
        if not self.is_kept or (status is None and now - self._written < self._pause_s):
            return
        running = self.running()
        jobs = [asdict(record) for record in self.records.values()]
        for job in jobs:
            if job["state"] == PENDING and job["name"] in running:
                job["state"] = RUNNING
        counts = Counter(job["state"] for job in jobs)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            about = {**self.about, "status": status or RUNNING, "updated": _now(), "counts": counts}
            write_json(self.folder / FILE, {**about, "jobs": jobs})
        except OSError as error:
            if not self._told:
                print(f"Cannot write {self.folder / FILE}: {error.strerror}. The jobs go on.", file=sys.stderr)
            self._told = True
        self._written = time.monotonic()
        self._pause_s = max(LEAST_PAUSE_S, (self._written - now) / SHARE)


def _attempts(path: Path) -> dict[str, int]:
    """How often each job was tried before, by its configuration's hash."""
    jobs = (read_sweep(path.parent) or {}).get("jobs", [])
    return {
        job["config_hash"]: job["attempts"]
        for job in jobs
        if isinstance(job, Mapping) and isinstance(job.get("config_hash"), str) and isinstance(job.get("attempts"), int)
    }


def _validated(record: Record) -> float:
    value = record.result["val_accuracy"] if record.result else None
    return -1.0 if value is None else value


def _measured(result: Mapping[str, Any]) -> dict[str, float | None]:
    arms = result["arms"]
    val = arms["student"]["val"]
    return {
        "val_accuracy": val["accuracy"] if val else None,
        "test_accuracy": arms["student"]["test"]["accuracy"],
        "baseline_test_accuracy": arms["baseline"]["test"]["accuracy"],
    }


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
