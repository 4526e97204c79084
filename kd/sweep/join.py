"""Taking part in a sweep that another process drives."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from kd import folder as folders
from kd.errors import ConfigError
from kd.locks import described, is_owned, read_owner
from kd.sweep.book import SKIPPED, Book
from kd.sweep.drive import PART_FAILED, Work
from kd.sweep.grid import Grid
from kd.sweep.networks import Plans, job_task
from kd.sweep.plan import Arguments, Job
from kd.sweep.record import FILE
from kd.sweep.search import Search
from kd.sweep.summary import Summary, shown
from kd.sweep.task import DONE, ELSEWHERE, FAILED, Launcher, Task


def join(arguments: Arguments, todo: Grid | Search, launcher: Launcher, console: Console) -> int:
    """Take part from the sweep's end, leaving what others are at; return the exit status.

    Raises `ConfigError` where that was not asked for (`join=true`), or the sweep is a search or forced.
    """
    folder = arguments.folder
    who = described(read_owner(folder))
    if isinstance(todo, Search):
        raise ConfigError(f"This search is being done by {who}. Wait for it.")
    jobs = todo.jobs
    if jobs[0].config.force:
        raise ConfigError(
            f"This sweep is being done by {who}. With force=true it cannot be joined: which folders are its own only "
            "its driver knows. Wait for it."
        )
    if not jobs[0].config.join:
        done = sum(folders.finished(job.folder, job.digest) is not None for job in jobs)
        raise ConfigError(
            f"This sweep is being done by {who}: {done} of {len(jobs)} jobs are finished ({shown(folder / FILE)}). "
            "Wait for it, or take part in it: the same command with join=true."
        )
    console.print(f"Taking part in {shown(folder)}, which {who} drives.", highlight=False, markup=False, soft_wrap=True)
    book = Book(folder, jobs, is_kept=False)
    work = Work(folder, launcher, book, Summary(console, book, launcher.slots()))
    plans = Plans()
    work.networks(plans, book.pending(jobs))
    work.together(plans, book.pending(jobs))
    by_name = {job.name: job for job in jobs}
    done = failed = 0
    for outcome in launcher.run(_left(book.pending(jobs), folder, work.group)):
        if outcome.state != ELSEWHERE:
            done, failed = done + (outcome.state == DONE), failed + (outcome.state == FAILED)
            book.ended(by_name[outcome.task.name], outcome)
            work.summary.job(by_name[outcome.task.name], outcome)
    failed += book.counts[SKIPPED]
    work.summary.note(f"{done} jobs were done here, {failed} failed.")
    return PART_FAILED if failed else 0


def _left(jobs: Sequence[Job], folder: Path, name: str) -> Iterator[Task]:
    """The jobs that nobody has done or is doing, the last one first, each looked at when its turn comes."""
    for job in reversed(jobs):
        if not is_owned(job.folder) and folders.finished(job.folder, job.digest) is None:
            yield job_task(job, folder, name)
