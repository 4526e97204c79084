"""`python -m kd.run -m`: a sweep, from its command line to its summary.

Read `sweep` and then `kd.sweep.drive` from top to bottom: take the command apart, check every job, say all mistakes at
once, train the networks that the jobs share, do the jobs wherever the launcher does them, and say what came out.
Everything is in one folder, which follows from the command: the same command again skips what is done, continues what
was cut off, and retries what failed.
"""

import shlex
from collections.abc import Sequence

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.console import Console

from kd import leaving, parallel
from kd.errors import ConfigError, UserError
from kd.locks import BusyError, owned
from kd.sweep.drive import drive
from kd.sweep.grid import Grid
from kd.sweep.join import join
from kd.sweep.plan import Arguments, read_arguments
from kd.sweep.search import read_search
from kd.sweep.serial import SerialLauncher
from kd.sweep.task import Launcher


def sweep(given: list[str]) -> int:
    """Do a sweep and return the exit status: 0, or 6 if a job failed. Raises `UserError` before anything has run."""
    console = Console()
    if parallel.asks_for_ddp(given) and parallel.here().world > 1:
        raise ConfigError(
            f"This sweep was started as {parallel.here().world} processes, but it starts those of its data-parallel "
            "jobs itself: type it without torchrun or srun."
        )
    arguments = read_arguments(given)
    launcher = _launcher(arguments)
    todo = read_search(arguments) or Grid(arguments)
    with leaving.orderly():
        try:
            with owned(arguments.folder):
                return drive(arguments, todo, launcher, console, shell(given))
        except BusyError as busy:
            if busy.folder != arguments.folder:
                raise
            return join(arguments, todo, launcher, console)
        finally:
            todo.close()
            launcher.close()


def shell(given: Sequence[str]) -> str:
    """The command that continues the sweep."""
    return shlex.join(["python", "-m", "kd.run", *given])


def _launcher(arguments: Arguments) -> Launcher:
    """Make the launcher that hydra/launcher names: one of ours, or `kd.hydra_guard` has refused it."""
    node = arguments.hydra.launcher
    if str(node.get("_target_")).endswith(".BasicLauncher"):
        return SerialLauncher()
    try:
        launcher: Launcher = instantiate(node, folder=arguments.folder)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):  # the launcher's own words, which Hydra wraps in others
            raise error.__cause__ from None
        raise
    return launcher
