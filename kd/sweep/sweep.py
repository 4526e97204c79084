"""`python -m kd.run -m`: a sweep, from its command line to its summary.

Read `sweep` from top to bottom: take the command apart, check every job, say all mistakes at once, train the networks
that the jobs share, do the jobs wherever the launcher does them, and say what came out. Everything is in one folder,
which follows from the command: the same command again skips what is done, continues what was cut off, and retries
what failed.
"""

import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.console import Console

from kd import folder as folders
from kd.errors import ConfigError, UserError
from kd.locks import BusyError, described, is_owned, owned, read_owner
from kd.sweep.book import FILE, Book
from kd.sweep.networks import Plans, job_task
from kd.sweep.plan import Arguments, Composer, Job, grid, read_arguments, refuse
from kd.sweep.search import Search, read_search
from kd.sweep.serial import SerialLauncher
from kd.sweep.summary import Summary, shown
from kd.sweep.task import ELSEWHERE, FAILED, Launcher, Task

PART_FAILED = 6
POLL_S = 1.0


def sweep(given: list[str]) -> int:
    """Do a sweep and return the exit status: 0, or 6 if a job failed. Raises `UserError` before anything has run."""
    console = Console()
    arguments = read_arguments(given)
    launcher = _launcher(arguments)
    todo = read_search(arguments) or Grid(arguments)
    try:
        with owned(arguments.folder):
            return _drive(arguments, todo, launcher, console, shell(given))
    except BusyError as busy:
        if busy.folder != arguments.folder:
            raise
        if isinstance(todo, Search):
            raise ConfigError(
                f"This search is being done by {described(read_owner(busy.folder))}. Wait for it."
            ) from busy
        return _join(arguments, todo.jobs, launcher, console)
    finally:
        todo.close()
        launcher.close()


class Grid:
    """Every combination of the values, in their order: jobs that are known from the beginning."""

    def __init__(self, arguments: Arguments) -> None:
        self.jobs = Composer(arguments).jobs(grid(arguments))

    def begin(self) -> list[Job]:
        return self.jobs

    def rehearsed(self, book: Book) -> list[Job]:
        return book.pending(self.jobs)

    def run(self, work: "Work", plans: Plans) -> None:
        work.do(plans, work.book.pending(self.jobs))

    def end(self, summary: Summary) -> None:
        pass

    def close(self) -> None:
        pass


def _drive(arguments: Arguments, todo: Grid | Search, launcher: Launcher, console: Console, command: str) -> int:
    """Do a sweep whose folder is ours."""
    folder = arguments.folder
    book = Book(
        folder, todo.begin(), experiment=arguments.experiment, command=command, launcher=type(launcher).__name__
    )
    rehearsed = todo.rehearsed(book)
    summary = Summary(console, book, launcher.slots())
    summary.start(folder)
    try:
        if rehearsed:
            plans = Plans()
            _rehearse(plans, arguments, rehearsed)
            book.write("running")
            todo.run(Work(folder, launcher, book, summary), plans)
    except BaseException:
        book.write("interrupted")
        raise
    finally:
        summary.stop()
    failed = book.counts["failed"] + book.counts["skipped"]
    book.write("failed" if failed else "done")
    summary.end(folder)
    todo.end(summary)
    return PART_FAILED if failed else 0


class Work:
    """The two parts of a sweep's work, in their order."""

    def __init__(self, folder: Path, launcher: Launcher, book: Book, summary: Summary) -> None:
        self.folder, self.launcher, self.book, self.summary = folder, launcher, book, summary
        self.group = group(folder)

    def do(self, plans: Plans, jobs: list[Job]) -> None:
        self.networks(plans, jobs)
        self.jobs(self.book.pending(jobs))

    def networks(self, plans: Plans, jobs: list[Job]) -> None:
        """Train what the jobs learn from or are compared with; a job whose network failed is skipped."""
        for level in plans.needed(jobs, self.folder, self.group):
            needed = {one.task.name: one for one in level}
            self.summary.note(f"{len(level)} networks that the jobs share are trained first")
            for outcome in self.launcher.run([one.task for one in level]):
                self.summary.network(outcome)
                if outcome.state == FAILED:
                    for job in needed[outcome.task.name].jobs:
                        self.book.skip(job, f"{outcome.task.name} failed: {outcome.error}")
                self.book.write()

    def jobs(self, jobs: list[Job]) -> None:
        """Do the jobs. One that another process is at is looked at again when that process has left it."""
        waiting = jobs
        while waiting:
            by_name = {job.name: job for job in waiting}
            tasks = (job_task(job, self.folder, self.group) for job in waiting)
            elsewhere = []
            for outcome in self.launcher.run(tasks):
                job = by_name[outcome.task.name]
                if outcome.state == ELSEWHERE:
                    elsewhere.append(job)
                    continue
                self.book.ended(job, outcome)
                self.summary.job(job, outcome)
                self.book.write()
            waiting = _free(elsewhere, self.summary)


def _free(jobs: list[Job], summary: Summary) -> list[Job]:
    """Wait until another process has left one of these jobs, and return those that are left."""
    if jobs:
        summary.note(f"waiting for {len(jobs)} jobs that other processes are doing")
    while jobs:
        if free := [job for job in jobs if not is_owned(job.folder)]:
            return [*free, *(job for job in jobs if job not in free)]
        time.sleep(POLL_S)
    return []


def _join(arguments: Arguments, jobs: list[Job], launcher: Launcher, console: Console) -> int:
    """Take part in a sweep that another process drives, if that is wanted: from its end, leaving what others are at."""
    folder = arguments.folder
    who = described(read_owner(folder))
    if not jobs[0].config.join:
        done = sum(folders.finished(job.folder, job.digest) is not None for job in jobs)
        raise ConfigError(
            f"This sweep is being done by {who}: {done} of {len(jobs)} jobs are finished ({shown(folder / FILE)}). "
            "Wait for it, or take part in it: the same command with join=true."
        )
    console.print(f"Taking part in {shown(folder)}, which {who} drives.", highlight=False, markup=False, soft_wrap=True)
    plans, name = Plans(), group(folder)
    for level in plans.needed(jobs, folder, name):
        list(launcher.run([one.task for one in level]))
    done = failed = 0
    for outcome in launcher.run(_left(jobs, folder, name)):
        done, failed = done + (outcome.state == "done"), failed + (outcome.state == FAILED)
        console.print(f"{outcome.task.name}  {outcome.state}  {outcome.error}", highlight=False, markup=False)
    console.print(f"{done} jobs were done here, {failed} failed.", highlight=False)
    return PART_FAILED if failed else 0


def _left(jobs: Sequence[Job], folder: Path, name: str) -> Iterator[Task]:
    """The jobs that nobody has done or is doing, the last one first, each looked at when its turn comes."""
    for job in reversed(jobs):
        if not is_owned(job.folder) and folders.finished(job.folder, job.digest) is None:
            yield job_task(job, folder, name)


def _rehearse(plans: Plans, arguments: Arguments, jobs: list[Job]) -> None:
    """Try jobs on one batch until every value of the sweep has had its turn; raises one error for all mistakes."""
    mistakes: dict[str, list[str]] = {}
    for job in covering(arguments, jobs):
        try:
            plans.rehearse(job.config)
        except UserError as error:
            mistakes.setdefault(str(error), []).append(job.words)
    refuse(mistakes, len(jobs))


def covering(arguments: Arguments, jobs: Iterable[Job]) -> list[Job]:
    """Jobs that together have every combination of config groups, and with it every single value, of the sweep.

    Seeds change no shape, and are left out.
    """
    groups = {axis.key for axis in arguments.axes if axis.is_group}
    seen: set[tuple[tuple[str, ...], str]] = set()
    found = []
    for job in jobs:
        key = {override: override.partition("=")[0] for override in job.overrides}
        choices = tuple(override for override in job.overrides if key[override] in groups)
        values = {(choices, o) for o in job.overrides if key[o] not in groups and key[o] != "seed"} or {(choices, "")}
        if values - seen:
            seen |= values
            found.append(job)
    return found


def group(folder: Path) -> str:
    """The sweep's name, for dashboards."""
    return f"{folder.parent.name}/{folder.name}"


def shell(given: Sequence[str]) -> str:
    """The command that continues the sweep."""
    return shlex.join(["python", "-m", "kd.run", *given])


def _launcher(arguments: Arguments) -> Launcher:
    """Make the launcher that hydra/launcher names. Raises `ConfigError` for one that is not ours."""
    node = arguments.hydra.launcher
    target = str(node.get("_target_"))
    if target.endswith(".BasicLauncher"):
        return SerialLauncher()
    if not target.startswith("kd."):
        raise ConfigError(
            f"hydra/launcher={arguments.hydra.runtime.choices['hydra/launcher']} cannot do a sweep here. "
            "Known: basic (one job after the other), ray (GPUs or slots of a machine or a cluster), slurm."
        )
    try:
        launcher: Launcher = instantiate(node, folder=arguments.folder)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):  # the launcher's own words, which Hydra wraps in others
            raise error.__cause__ from None
        raise
    return launcher
