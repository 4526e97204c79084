"""What the processes of a data-parallel run that do not lead do: train what they are told to."""

import sys
import traceback
from pathlib import Path

from rich.console import Console

from kd import build
from kd.errors import NumericError, UserError
from kd.parallel import ProcessLostError, Team
from kd.quiet import quiet
from kd.recipe import plan
from kd.schema import RunConfig
from kd.store import Store
from kd.train import Trainings


def follow(config: RunConfig, team: Team) -> None:
    """Take part in every training that the leader announces. Says what goes wrong in this process alone."""
    try:
        _follow(config, team)
        team.close()
    except (ProcessLostError, NumericError):
        raise  # the leader says so
    except Exception as error:
        if isinstance(error, UserError):
            print(f"Error: process {team.place.rank + 1} of {team.size}: {error}", file=sys.__stderr__)
        else:
            traceback.print_exc(file=sys.__stderr__)
        raise


def _follow(config: RunConfig, team: Team) -> None:
    task = team.next_task()
    if task is None:
        return
    quiet()
    build.device(config.trainer)
    data = build.data(config)  # after the leader, who may have downloaded it
    recipes = {recipe.key: recipe for recipe in plan(config, data).recipes()}
    store, console = Store(config.store.root), Console(quiet=True)
    while task is not None:
        folder, cache = Path(task["folder"]), config.teacher.cache
        trainings = Trainings(data, store, folder, config.trainer, console, lambda *_: None, team, cache=cache)
        trainings.follow(recipes[task["network"]], task["begun"])
        task = team.next_task()
