"""`python -m kd.run`: one experiment, from its configuration to its result.

Read `run` and `conduct` from top to bottom: check the configuration, find the folder, read the data, try every arm on
one batch, train what is missing, evaluate once, write and show the result. With `-m` there are many runs: `kd.sweep`.
"""

if __name__ == "__main__":  # first of all: to import what follows takes a while
    from kd.leaving import at_once

    at_once()

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console

from kd import folder as folders
from kd import leaving, parallel
from kd.cli import entry
from kd.files import CHECKPOINTS, ERROR, OWN_STORE, PAGE, write_error
from kd.locks import owned
from kd.rules import check
from kd.schema import RunConfig
from kd.table import show

if TYPE_CHECKING:
    from kd.recipe import Plan
    from kd.train import Trainings


def run(raw: DictConfig) -> None:
    """Do one run, or show it if it is finished. Raises `UserError` for what the user can mend, before any training."""
    folders.name_fork(raw)
    config, console = check(raw), Console()
    folder = folders.run_folder(config)
    if not config.force and (finished := folders.finished(folder, folders.config_hash(config))):
        write_missing_page(folder)
        show(finished, console)
        console.print("This run was finished before; force=true trains it anew.")
        return
    if config.force:
        config.store.root = str(folder / OWN_STORE)
    if wanted := parallel.processes_to_launch(config.trainer):
        with leaving.orderly():
            sys.exit(parallel.launch(sys.argv[1:], processes=wanted))
    conduct(config, folder, console)


def conduct(config: RunConfig, folder: Path, console: Console, group: str | None = None) -> None:
    """Do a run in its folder, from the data to the page. `group`: the sweep that it belongs to."""
    # Torch takes seconds to import: not before it is needed.
    from kd import build, examples, report, result
    from kd.dry_run import dry_run
    from kd.evaluate import evaluate
    from kd.follow import follow
    from kd.quiet import quiet
    from kd.recipe import plan
    from kd.store import Store
    from kd.teacher_contract import question, question_files
    from kd.tracking.tracking import Tracking
    from kd.train import Trainings

    team = parallel.Team(config.trainer)
    if not team.leads:
        follow(config, team)
        return
    started = time.perf_counter()
    quiet()
    device = build.device(config.trainer)
    data = build.data(config)
    planned = plan(config, data)
    dry_run(planned, data, team.size, config.teacher.cache)
    store = Store(config.store.root)
    with ExitStack() as ending:
        ending.enter_context(leaving.orderly())
        ending.enter_context(owned(folder))
        if finished := folders.finished(folder, folders.config_hash(config)):  # by another, while this one started up
            write_missing_page(folder)
            team.close()
            show(finished, console)
            console.print("Another process has just finished this run.")
            return
        (folder / ERROR).unlink(missing_ok=True)
        ending.enter_context(noted(folder))
        changed = folders.lengthened(folder, config)
        folders.prepare(folder, config)
        tracking = Tracking(config, folder, group)
        ending.callback(tracking.close)
        anew = [f"force=true: trained anew, into {config.store.root}"] if config.force else []
        for line in (f"{config.experiment}  {folder}", *planned.describe(), *anew):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

        trainings = Trainings(
            data,
            store,
            folder / CHECKPOINTS,
            config.trainer,
            console,
            tracking.start,
            team,
            cache=config.teacher.cache,
        )
        if changed:
            say_what_trains_anew(changed, planned, trainings, console)
        question_files(planned, data, device, config.teacher)
        for recipe in planned.recipes():
            question(recipe, trainings.obtain(recipe), data, config.teacher)
        found = evaluate(planned, trainings, device, timed=config.latency)
        digest, wall_s = folders.config_hash(config), time.perf_counter() - started
        content = result.assemble(config, digest, planned, data, found.blocks, device, wall_s)
        examples.write(folder, data, found.logits, found.target)
        result.write_files(folder, content, planned, trainings)
        tracking.finish(content)  # before the result: a run with one is not continued, and its logs would stay open
        result.write(folder, content)
        report.write_page([folder], folder / PAGE)
    team.close()
    show(content, console)
    for line in filter(None, (f"page: {folder / PAGE}", tracking.hint)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def write_missing_page(folder: Path) -> None:
    """A run may have been cut off between its result and its page."""
    if not (folder / PAGE).is_file():
        from kd import report

        report.write_page([folder], folder / PAGE)


def say_what_trains_anew(changed: str, planned: "Plan", trainings: "Trainings", console: Console) -> None:
    """Name the networks of an unfinished run that another number of epochs makes other ones."""
    anew = [recipe.label for recipe in planned.recipes() if not trainings.has_begun(recipe)]
    if anew:
        console.print(
            f"trainer.max_epochs {changed}: training {', '.join(anew)} from the start, for learning rates depend on "
            "the number of epochs; fork=true would start from the student's weights",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip


@contextmanager
def noted(folder: Path) -> Iterator[None]:
    """Leave error.txt in the folder for whatever goes wrong."""
    try:
        with leaving.insisting():
            yield
    except Exception as error:
        write_error(folder, error)
        raise


if __name__ == "__main__":
    entry(run)
