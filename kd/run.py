"""`python -m kd.run`: one experiment, from its configuration to its result.

Read `run` and `conduct` from top to bottom: check the configuration, find the folder, read the data, try every arm on
one batch, train what is missing, evaluate once, write and show the result. With `-m` there are many runs: `kd.sweep`.
"""

import sys
import time
from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from kd import folder as folders
from kd import parallel
from kd.cli import entry
from kd.locks import owned
from kd.schema import RunConfig, check
from kd.table import show


def run(raw: DictConfig) -> None:
    """Do one run, or show it if it is finished. Raises `UserError` for what the user can mend, before any training."""
    config, console = check(raw), Console()
    folder = folders.run_folder(config)
    if not config.force and (finished := folders.finished(folder, folders.config_hash(config))):
        show(finished, console)
        console.print("This run was finished before; force=true trains it anew.")
        return
    if wanted := parallel.processes_to_launch(config.trainer):
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
    dry_run(planned, data, team.size)
    store = Store(config.store.root)
    with ExitStack() as ending:
        ending.enter_context(owned(folder))
        folders.prepare(folder, config)
        tracking = Tracking(config, folder, group)
        ending.callback(tracking.close)
        for line in (f"{config.experiment}  {folder}", *planned.describe()):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

        trainings = Trainings(data, store, folder / "checkpoints", config.trainer, console, tracking.start, team)
        for recipe in planned.recipes():
            trainings.obtain(recipe)
        found = evaluate(planned, trainings, device, timed=config.latency)
        digest, wall_s = folders.config_hash(config), time.perf_counter() - started
        content = result.assemble(config, digest, planned, data, found.blocks, device, wall_s)
        examples.write(folder, data, found.logits, found.target)
        result.write_files(folder, content, planned, trainings)
        tracking.finish(content)  # before the result: a run with one is not continued, and its logs would stay open
        result.write(folder, content)
        report.write_page([folder], folder / "report.html")
    team.close()
    show(content, console)
    for line in filter(None, (f"page: {folder / 'report.html'}", tracking.hint)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    entry(run)
