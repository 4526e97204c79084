"""One task of a sweep, in whatever process: its own log, its own outcome, never an exception of the run."""

import json
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from rich.console import Console

from kd import folder as folders
from kd import leaving, parallel
from kd.errors import UserError
from kd.files import ERROR, LOG, write_error
from kd.locks import BusyError, is_owned, owner
from kd.schema import RunConfig, restored
from kd.sweep.parallel_task import together
from kd.sweep.task import DONE, ELSEWHERE, FAILED, Outcome, Task

UNEXPECTED = 1  # the status of a mistake that is not the user's


def perform(task: Task) -> Outcome:
    """Do a task; its output goes to log.txt in its folder, what went wrong to error.txt.

    A mistake becomes an outcome. An interruption (Ctrl-C, SIGTERM) is passed on: the task can be continued.
    """
    started = time.perf_counter()

    def outcome(state: str, status: int = 0, error: str = "", said: str = "") -> Outcome:
        return Outcome(task, state, status, error, socket.gethostname(), time.perf_counter() - started, said)

    said = ""

    try:
        with chdir(task.cwd):
            config = restored(task.config)
            if parallel.follows(config.trainer):
                _do(task, config, Console(quiet=True))
                return outcome(DONE)  # the process that leads says more
            if (task.network is None or task.students) and is_owned(task.folder):  # by another, whose mark stays
                _dismiss_others(config)
                raise BusyError(task.folder)
            task.folder.mkdir(parents=True, exist_ok=True)
            (task.folder / ERROR).unlink(missing_ok=True)
            with _marked(task.mark), (task.folder / LOG).open("a", encoding="utf-8", buffering=1) as log:
                try:
                    with leaving.insisting():
                        said = _do(task, config, Console(file=log, width=120))
                except Exception:
                    traceback.print_exc(file=log)
                    raise
    except BusyError as busy:
        return outcome(ELSEWHERE, error=str(busy))
    except (UserError, OSError) as error:
        return outcome(FAILED, getattr(error, "status", UserError.status), _note(task, error))
    except Exception as error:
        return outcome(FAILED, UNEXPECTED, _note(task, error))
    return outcome(DONE, said=said)


def _do(task: Task, config: RunConfig, console: Console) -> str:
    from kd.run import conduct, write_missing_page
    from kd.sweep.networks import train_network
    from kd.sweep.together import train_students

    is_run = task.network is None and not parallel.follows(config.trainer)
    if is_run and folders.finished(task.folder, folders.config_hash(config)) is not None:
        write_missing_page(task.folder)
        _dismiss_others(config)
        return ""
    if wanted := parallel.processes_to_launch(config.trainer):
        together(task, wanted)
    elif task.students:
        return train_students(task, console)
    elif task.network is not None:
        train_network(task, config, console)
    else:
        conduct(config, task.folder, console, group=task.group)
    return ""


def _dismiss_others(config: RunConfig) -> None:
    """Processes that were started together with this one wait for its word."""
    parallel.Team(config.trainer).close()


@contextmanager
def _marked(path: Path) -> Iterator[None]:
    """Show who works on the task, for the summary; what is true is the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(owner()), encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _note(task: Task, error: Exception) -> str:
    """Leave error.txt in the folder and return the message. Of several processes the first writes: what the others say
    follows from its error."""
    return write_error(task.folder, error)
