"""`python -m kd.run`: one experiment, from its configuration to its result.

Read `run` from top to bottom: check the configuration, find the folder, read the data, try every arm on one batch,
train what is missing, evaluate once, write and show the result.
"""

import time

from omegaconf import DictConfig
from rich.console import Console

from kd import folder as folders
from kd.cli import entry
from kd.schema import check
from kd.table import show


def run(raw: DictConfig) -> None:
    """Do one run. Raises a `UserError` for everything that the user can mend, before any training starts."""
    started = time.perf_counter()
    console = Console()
    config = check(raw)
    folder, digest = folders.run_folder(config), folders.config_hash(config)
    if not config.force and (finished := folders.finished(folder, digest)):
        show(finished, console)
        console.print("This run was finished before; force=true trains it anew.")
        return

    # Torch takes seconds to import: not before it is needed.
    from kd import build, examples, report, result
    from kd.dry_run import dry_run
    from kd.evaluate import evaluate
    from kd.quiet import quiet
    from kd.recipe import plan
    from kd.store import Store
    from kd.tracking import Tracking
    from kd.train import Trainings

    quiet()
    device = build.device(config.trainer)
    data = build.data(config)
    planned = plan(config, data)
    dry_run(planned, data)
    store = Store(config.store.root)
    folders.prepare(folder, config)
    tracking = Tracking(config, folder)
    for line in (f"{config.experiment}  {folder}", *planned.describe()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    trainings = Trainings(data, store, folder / "checkpoints", config.trainer, console, tracking.start)
    try:
        for recipe in planned.recipes():
            trainings.obtain(recipe)
        found = evaluate(planned, trainings, device, timed=config.latency)
        content = result.assemble(config, digest, planned, data, found.blocks, device, time.perf_counter() - started)
        examples.write(folder, data, found.logits, found.target)
        result.write(folder, content, planned, trainings)
        report.write_page([folder], folder / "report.html")
        tracking.finish(content)
    finally:
        tracking.close()
    show(content, console)
    for line in filter(None, (f"page: {folder / 'report.html'}", tracking.hint)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    entry(run)
