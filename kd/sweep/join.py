"""Taking part in a sweep that another process drives."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from kd import folder as folders
from kd.errors import ConfigError
from kd.locks import described, is_owned, read_owner
from kd.sweep.drive import PART_FAILED, group
from kd.sweep.grid import Grid
from kd.sweep.networks import Plans, job_task
from kd.sweep.plan import Arguments, Job
from kd.sweep.record import FILE
from kd.sweep.search import Search
from kd.sweep.summary import shown
from kd.sweep.task import DONE, FAILED, Launcher, Task


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
    plans, name = Plans(), group(folder)
    hopeless: set[str] = set()  # jobs whose network could not be trained
    for level in plans.needed(jobs, folder, name):
        needed = {one.task.name: one for one in level}
        for outcome in launcher.run([one.task for one in level]):
            if outcome.state == FAILED:
                hopeless |= {job.name for job in needed[outcome.task.name].jobs}
                console.print(f"{outcome.task.name}  failed  {outcome.error}", highlight=False, markup=False)
    done, failed = 0, len(hopeless)
    for outcome in launcher.run(_left([job for job in jobs if job.name not in hopeless], folder, name)):
        done, failed = done + (outcome.state == DONE), failed + (outcome.state == FAILED)
        console.print(f"{outcome.task.name}  {outcome.state}  {outcome.error}", highlight=False, markup=False)
    console.print(f"{done} jobs were done here, {failed} failed.", highlight=False)
    return PART_FAILED if failed else 0


def _left(jobs: Sequence[Job], folder: Path, name: str) -> Iterator[Task]:
    """The jobs that nobody has done or is doing, the last one first, each looked at when its turn comes."""
    for job in reversed(jobs):
        if not is_owned(job.folder) and folders.finished(job.folder, job.digest) is None:
            yield job_task(job, folder, name)
