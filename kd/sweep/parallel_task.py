"""A task of a sweep for several processes; one of them is `python -m kd.sweep.parallel_task TASK OUTCOME`."""

import json
import pickle
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from kd.errors import UserError
from kd.leaving import INTERRUPTED, PREEMPTED, preempted
from kd.locks import BusyError
from kd.parallel import here, launch, mute_followers
from kd.sweep.task import ELSEWHERE, FAILED, Task


class TogetherError(UserError):
    """Several processes could not do a task; the status is that of the one that failed first."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def together(task: Task, processes: int) -> None:
    """Do a task in new processes. Raises what a single process would have raised, or `TogetherError`."""
    with tempfile.TemporaryDirectory(prefix="kd-") as folder:
        given, answer = Path(folder) / "task", Path(folder) / "outcome.json"
        given.write_bytes(pickle.dumps(task))
        status = launch([str(given), str(answer)], "kd.sweep.parallel_task", processes=processes)
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        if status == PREEMPTED:
            sys.exit(PREEMPTED)
        outcome = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else {}
    if outcome.get("state") == ELSEWHERE:
        raise BusyError(task.folder)
    if status or outcome.get("state") == FAILED:
        raise TogetherError(outcome.get("error") or f"one of {processes} processes ended with status {status}", status)


def main(given: str, answer: str) -> int:
    from kd.sweep.work import perform

    signal.signal(signal.SIGTERM, preempted)
    mute_followers([])
    try:
        outcome = perform(pickle.loads(Path(given).read_bytes()))
    except KeyboardInterrupt:
        return INTERRUPTED
    if here().rank == 0 or outcome.state == FAILED:
        content = {"state": outcome.state, "error": outcome.error}
        with suppress(FileExistsError), Path(answer).open("x", encoding="utf-8") as file:  # the first to fail says why
            file.write(json.dumps(content))
    return outcome.status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
