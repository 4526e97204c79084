"""Signals that ask a process to end: during a training they wait until a checkpoint is written."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from kd import leaving

#: Ctrl-C, the end (from `kill`, a scheduler, a shutdown), and what a cluster warns with before it preempts a job
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Signals:
    """Remembers the first signal while it watches; a second Ctrl-C has its usual effect at once.

    Only signals that somebody handles, and Ctrl-C and SIGTERM unless they are ignored, are watched, and only in a
    process's main thread.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Any] = {}
        self._pid = os.getpid()

    @contextmanager
    def kept(self) -> Iterator["Signals"]:
        """Give the signals back to whoever handles them now.

        What goes wrong inside after a signal was heard follows from it: the process then leaves as it was asked to.
        """
        self._before = {sign: signal.getsignal(sign) for sign in ENDING}
        try:
            yield self
        except Exception:
            if self.asked:  # which has reached what this process waits for, too: a data worker say
                self.leave(self.asked)
            raise
        except SystemExit as left:
            if left.code == 1:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        finally:
            self._give_back()
            self._before = {}

    def watch(self) -> None:
        """Begin; Lightning has put handlers of its own in place by then. A signal from before must not be lost."""
        leaving.insist()
        if threading.current_thread() is not threading.main_thread():
            return
        for sign, handler in self._before.items():
            if callable(handler) or (handler == signal.SIG_DFL and sign == signal.SIGTERM):
                signal.signal(sign, self._hear)

    def leave(self, sign: int) -> None:
        """Have the signal's usual effect, which for most ends the process."""
        self._give_back()
        self.asked = 0
        signal.raise_signal(sign)
        self.watch()  # it has not: a job of submitit's takes no notice of SIGTERM

    def _hear(self, sign: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data worker: its parent decides about Ctrl-C, and ends it
            if sign != signal.SIGINT:
                os._exit(128 + sign)
            return
        if self.asked and sign == signal.SIGINT:
            self._give_back()
            signal.raise_signal(sign)
            return
        if not self.asked and sign == signal.SIGINT:
            print("Saving; Ctrl-C again leaves at once.", file=sys.stderr, flush=True)
        self.asked = self.asked or sign

    def _give_back(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for sign, handler in self._before.items():
                if handler is not None:
                    signal.signal(sign, handler)
