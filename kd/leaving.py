"""How Ctrl-C and SIGTERM end a command: at once while nothing has to be tidied up, else by an exception.

An exception that a handler raises may never arrive. In the middle of an import it leaves half a module behind, over
which the lines that follow stumble; and Hydra turns what it catches into errors of its own. Importing torch, composing
a configuration and preparing data leave nothing open: there the process simply ends.

Nothing here takes long to import: `at_once` is the first thing that a command does.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

INTERRUPTED, PREEMPTED = 130, 143
SAID = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}

_heard: list[int] = []  # the signals that have raised an exception, while `orderly` lasts
_owner = 0  # the process that is to speak: one that was forked from it is told of Ctrl-C, too


def at_once() -> None:
    """From now on a signal ends this process with its status and one line; one that is ignored stays so."""
    global _owner
    _owner = os.getpid()
    for sign in SAID:
        if signal.getsignal(sign) is not signal.SIG_IGN:
            signal.signal(sign, _leave)


@contextmanager
def orderly() -> Iterator[None]:
    """For as long as something is open, a lock or logs or processes: a signal raises, so that it is closed.

    Only where `at_once` has been said; elsewhere signals are somebody else's.
    """
    ours = [sign for sign in SAID if signal.getsignal(sign) is _leave]
    for sign in ours:
        signal.signal(sign, _raise)
    try:
        with insisting():
            yield
    finally:
        for sign in ours:
            signal.signal(sign, _leave)
        if ours:
            _heard.clear()


@contextmanager
def insisting() -> Iterator[None]:
    """Turn an exception back into the signal that led to it."""
    try:
        yield
    except Exception:
        insist()
        raise


def insist() -> None:
    """Raise what a signal has raised before, if there was one: somebody has caught it."""
    if _heard:
        raise (KeyboardInterrupt if _heard[-1] == signal.SIGINT else SystemExit(PREEMPTED)) from None


def preempted(_signal: int, _frame: FrameType | None) -> NoReturn:
    """A handler of SIGTERM that raises."""
    print(f"{SAID[signal.SIGTERM]}. The same command continues the run.", file=sys.stderr)
    sys.exit(PREEMPTED)


def _raise(sign: int, frame: FrameType | None) -> NoReturn:
    _heard.append(sign)
    if sign == signal.SIGINT:
        raise KeyboardInterrupt
    preempted(sign, frame)


def _leave(sign: int, _frame: FrameType | None) -> NoReturn:
    if os.getpid() == _owner:
        with suppress(Exception):  # it may be in the middle of a line
            sys.stdout.flush()
        with suppress(Exception):  # not by print, for the same reason
            line = f"{SAID[signal.Signals(sign)]}. The same command continues the run.\n"
            os.write(sys.stderr.fileno(), line.encode())
    os._exit(128 + sign)
