"""Starts a command in several processes on this machine, and ends as they do.

torchrun would do; but it turns every exit status into 1, prints its own report beside our message, and takes seconds to
import torch first.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MEETING = "KD_MEETING"  # environment variable: the file through which the processes find each other
GRACE_S = 15.0  # for the others once one process has ended; then they are told to, then killed
POLL_S = 0.05
BY_SIGNAL = 128  # a shell's exit status for a process that signal n has ended is this + n

Process = subprocess.Popen[bytes]


def launch(arguments: Sequence[str], module: str = "kd.run", *, processes: int) -> int:
    """Run `python -m MODULE ARGUMENTS` in several processes on this machine; return the exit status.

    The first process prints; Ctrl-C and SIGTERM reach all. If one fails, the others are ended. The status is 0 if the
    first process has ended with it, else that of the process that failed first. CPU threads are shared out unless
    OMP_NUM_THREADS says how.
    """
    with tempfile.TemporaryDirectory(prefix="kd-") as folder:
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        shared = {"OMP_NUM_THREADS": threads, **os.environ, MEETING: str(Path(folder) / "meeting")}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
        started: list[Process] = []
        with _passed_on(started):
            try:
                for rank in range(processes):
                    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    started.append(_start([sys.executable, "-m", module, *arguments], shared | own))
                return _outcome(started)
            finally:
                for process in started:
                    process.kill()
                    with process:  # closes its input, and waits
                        pass


def _start(command: list[str], environment: dict[str, str]) -> Process:
    """Start one process: out of reach of the terminal's Ctrl-C, which is passed on once; it ends with its input."""
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, process_group=0)


def _outcome(started: list[Process]) -> int:
    """Wait for all processes, not for long after one has failed or the first, which does what is left, has ended."""
    first: tuple[int, int] | None = None  # rank and status of the first failure
    ended_at: float | None = None
    told = False
    while any(statuses := [process.poll() is None for process in started]):
        first = first or _failure(started)
        if ended_at is None and (first is not None or not statuses[0]):
            ended_at = time.monotonic()
        late = 0.0 if ended_at is None else time.monotonic() - ended_at
        if late > GRACE_S and not told:
            told = True
            _signal(started, signal.SIGTERM)
        if late > 2 * GRACE_S:
            _signal(started, signal.SIGKILL)
        time.sleep(POLL_S)
    first = first or _failure(started)
    if first is None or started[0].returncode == 0:  # the first process has done it all; the others only had to go
        return 0
    rank, status = first
    if status >= 0:
        return status
    print(
        f"Error: process {rank + 1} of {len(started)} was ended by {signal.Signals(-status).name}, and the others with "
        "it. The same command continues the run.",
        file=sys.stderr,
    )
    return BY_SIGNAL - status


def _failure(started: list[Process]) -> tuple[int, int] | None:
    """Rank and status of a process that has failed; of several, one that a signal ended: the others followed."""
    failed = [(process.returncode, rank) for rank, process in enumerate(started) if process.returncode]
    if not failed:
        return None
    killed = [one for one in failed if one[0] < 0]
    status, rank = (killed or failed)[0]
    return rank, status


def _signal(started: list[Process], sign: int) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(sign)


@contextmanager
def _passed_on(started: list[Process]) -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM on to the processes, which know how to end. A thread that is not the main one cannot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(sign: int, _frame: FrameType | None) -> None:
        _signal(started, sign)

    before = {sign: signal.signal(sign, pass_on) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
