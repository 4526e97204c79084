"""The networks that the jobs of a sweep need before they distil: each is trained once, and in no job's time."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kd.errors import UserError
from kd.files import CHECKPOINTS, MARKS
from kd.schema import RunConfig
from kd.sweep.plan import Job
from kd.sweep.task import Task


@dataclass
class Needed:
    """A network, by its key: the task that trains it, and the jobs that cannot do without."""

    task: Task
    level: int  # above those that it learns from
    jobs: list[Job] = field(default_factory=list)


class Plans:
    """The recipes of jobs; jobs with the same data read them, or fail to, once."""

    def __init__(self) -> None:
        self._data: dict[str, Any] = {}

    def data(self, config: RunConfig) -> Any:
        from kd import build

        key = json.dumps(config.data, sort_keys=True, default=str)
        if key not in self._data:
            try:
                self._data[key] = build.data(config)
            except UserError as error:
                self._data[key] = error
        if isinstance(self._data[key], UserError):
            raise self._data[key]
        return self._data[key]

    def rehearse(self, config: RunConfig) -> None:
        """Send one batch through every arm of a job, as the run itself will. Raises `UserError`."""
        from kd.dry_run import dry_run
        from kd.parallel import processes
        from kd.recipe import plan

        data = self.data(config)
        dry_run(plan(config, data), data, processes(config.trainer), config.teacher.cache)

    def needed(self, jobs: Iterable[Job], folder: Path, group: str) -> list[list[Needed]]:
        """The networks that are not in the store, level by level: teachers and baselines, then what learns of them."""
        from kd.recipe import plan
        from kd.store import Store

        found: dict[str, Needed] = {}
        stores: dict[str, Store] = {}
        for job in jobs:
            store = stores.setdefault(job.config.store.root, Store(job.config.store.root))
            planned = plan(job.config, self.data(job.config))
            for recipe in planned.recipes():
                if recipe == planned.student:
                    continue
                if recipe.key not in found and store.get(recipe.key) is None:
                    name = f"{recipe.label}-{recipe.key}"
                    task = network_task(job, folder, name, recipe.label, group)
                    found[recipe.key] = Needed(task, _level(recipe))
                if recipe.key in found:
                    found[recipe.key].jobs.append(job)
        levels = sorted({needed.level for needed in found.values()})
        return [[needed for needed in found.values() if needed.level == level] for level in levels]


def network_folder(sweep: Path, name: str) -> Path:
    return sweep / "networks" / name


def network_task(job: Job, folder: Path, name: str, label: str, group: str) -> Task:
    return replace(job_task(job, folder, group), name=name, folder=network_folder(folder, name), network=label,
                   mark=folder / MARKS / f"{name}.json")  # fmt: skip


def job_task(job: Job, folder: Path, group: str) -> Task:
    return Task(job.name, asdict(job.config), job.folder, folder / MARKS / f"{job.name}.json", group=group)


def train_network(task: Task, config: RunConfig, console: Console) -> None:
    """Do a task that is a network: train it, or wait for another process that does, and leave it in the store."""
    from kd import build
    from kd.follow import follow
    from kd.parallel import Team
    from kd.quiet import quiet
    from kd.recipe import plan
    from kd.store import Store
    from kd.tracking.tracking import Tracking
    from kd.train import Trainings

    team = Team(config.trainer)
    if not team.leads:
        follow(config, team)
        return
    quiet()
    build.device(config.trainer)
    data = build.data(config)
    recipe = next(recipe for recipe in plan(config, data).recipes() if recipe.label == task.network)
    tracking = Tracking(config, task.folder, task.group)
    trainings = Trainings(
        data, Store(config.store.root), task.folder / CHECKPOINTS, config.trainer, console, tracking.start, team,
        cache=config.teacher.cache,
    )  # fmt: skip
    try:
        trainings.obtain(recipe)
        tracking.finish()
    finally:
        tracking.close()
    team.close()


def _level(recipe: Any) -> int:
    below: Sequence[Any] = [*recipe.teacher.members, *filter(None, [recipe.initial])]
    return 1 + max((_level(member) for member in below if hasattr(member, "teacher")), default=-1)
