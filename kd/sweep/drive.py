"""Doing a sweep: one process drives it, from the trial on one batch to the last job."""

import time
from pathlib import Path

from rich.console import Console

from kd import leaving
from kd.locks import is_owned
from kd.sweep.book import RUNNING, SKIPPED, Book
from kd.sweep.grid import Grid
from kd.sweep.networks import Plans, job_task
from kd.sweep.plan import Arguments, Job
from kd.sweep.rehearsal import rehearse
from kd.sweep.search import Search
from kd.sweep.summary import Summary, shown
from kd.sweep.task import DONE, ELSEWHERE, FAILED, Launcher
from kd.sweep.together import groups
from kd.tracking.look import where

PART_FAILED = 6
SEPARATE = "separate"
NAMED = 3  # jobs that are named where many are meant
POLL_S = 1.0


def drive(arguments: Arguments, todo: Grid | Search, launcher: Launcher, console: Console, command: str) -> int:
    """Do a sweep whose folder is ours, and return the exit status."""
    folder = arguments.folder
    book = Book(
        folder, todo.begin(), experiment=arguments.experiment, command=command, launcher=type(launcher).__name__
    )
    rehearsed = todo.rehearsed(book)
    summary = Summary(console, book, launcher.slots() if rehearsed else 0)
    summary.start(folder)
    try:
        if rehearsed:
            plans = Plans()
            rehearse(plans, arguments, rehearsed, launcher)
            leaving.insist()  # torch was imported in there
            _do(todo, Work(folder, launcher, book, summary), plans)
    finally:
        summary.stop()
    failed = book.counts[FAILED] + book.counts[SKIPPED]
    book.write(FAILED if failed else DONE)
    summary.end(folder)
    todo.end(summary)
    if rehearsed and (line := where(rehearsed[0].config.logger, shown(folder))):
        summary.note(line)
    return PART_FAILED if failed else 0


def _do(todo: Grid | Search, work: "Work", plans: Plans) -> None:
    """Do the work, and leave a sweep.json that says how it was left."""
    work.book.write(RUNNING)
    try:
        todo.run(work, plans)
    except BaseException:
        work.book.write("interrupted")
        raise


class Work:
    """The parts of a sweep's work, in their order."""

    def __init__(self, folder: Path, launcher: Launcher, book: Book, summary: Summary) -> None:
        self.folder, self.launcher, self.book, self.summary = folder, launcher, book, summary
        self.group = group(folder)

    def do(self, plans: Plans, jobs: list[Job]) -> None:
        self.networks(plans, jobs)
        self.together(plans, self.book.pending(jobs))
        self.jobs(self.book.pending(jobs))

    def networks(self, plans: Plans, jobs: list[Job]) -> None:
        """Train what the jobs learn from or are compared with; a job whose network failed is skipped."""
        for level in plans.needed(jobs, self.folder, self.group):
            # not those that only jobs need which have been skipped, because something else that they need has failed
            needed = {one.task.name: one for one in level if self.book.pending(one.jobs)}
            if not needed:
                continue
            self.summary.note(f"{len(needed)} networks that the jobs share are trained first")
            for outcome in self.launcher.run([one.task for one in needed.values()]):
                self.summary.network(outcome)
                if outcome.state == FAILED:
                    for job in self.book.pending(needed[outcome.task.name].jobs):
                        self.book.skip(job, f"{outcome.task.name} failed: {outcome.error}")
                self.book.write()

    def together(self, plans: Plans, jobs: list[Job]) -> None:
        """With sweep=together, train students in groups; whatever becomes of a group, its jobs follow."""
        if not jobs or jobs[0].config.sweep == SEPARATE:
            return
        found = groups(plans, jobs, self.folder, self.group)
        for reason, apart in found.apart.items():
            some = "; ".join(job.words for job in apart[:NAMED]) + ("; ..." if len(apart) > NAMED else "")
            are = "students are trained by their jobs" if len(apart) > 1 else "student is trained by its job"
            self.summary.note(f"{len(apart)} {are} ({some}): {reason}")
        if found.tasks:
            in_groups = f"{len(found.tasks)} groups" if len(found.tasks) > 1 else "one group"
            self.summary.note(f"{found.students} students are trained in {in_groups} first")
        for outcome in self.launcher.run(found.tasks):
            self.summary.network(outcome)
            if outcome.state == FAILED:
                self.summary.note("  the students of this group are trained by their jobs")
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


def group(folder: Path) -> str:
    """The sweep's name, for dashboards."""
    return f"{folder.parent.name}/{folder.name}"
