"""`sweep=together`: the students of a sweep are trained in groups, before the jobs, which find them in the store.

A group shares data, student network, teacher, seed and everything else but the method's terms and hyper-parameters and
the optimiser's settings: its batches and its teacher's outputs are the same for all. The seeds of a sweep are groups of
their own, whose batches differ. What cannot be trained like this is trained by its job, and it is said why.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from kd import parallel
from kd.errors import StoreError
from kd.files import CHECKPOINTS
from kd.locks import owned
from kd.schema import RunConfig, restored
from kd.sweep.networks import Plans, network_folder, network_task
from kd.sweep.plan import Job
from kd.sweep.task import Task

if TYPE_CHECKING:
    from kd.recipe import Recipe

#: choices of `sweep`, and the way that each asks for; a group's students are stacked, looped, or what is faster
WAYS = {"together": "auto", "stacked": "stacked", "looped": "looped"}
MOST = 32  # students in a group: its memory grows with them, and what they share is soon all that there was to gain


@dataclass
class Groups:
    """The tasks that train groups of students, and why other students are trained by their jobs."""

    tasks: list[Task]
    students: int  # in all groups
    apart: dict[str, list[Job]]  # by reason


def groups(plans: Plans, jobs: Iterable[Job], folder: Path, sweep: str) -> Groups:
    """Sort the students that are not in the store, each once, into groups.

    Those that are in the store keep their places, so that a group that was cut off is found again with its checkpoint.
    """
    from kd import checkpoints
    from kd.lockstep.train import CHECKPOINT
    from kd.recipe import plan
    from kd.store import Store

    stores: dict[str, Store] = {}
    stored: set[str] = set()
    alike: dict[str, dict[str, Job]] = {}
    found = Groups([], 0, {})
    for job in jobs:
        data = plans.data(job.config)
        recipe = plan(job.config, data).student
        store = stores.setdefault(job.config.store.root, Store(job.config.store.root))
        reason = why_apart(job.config, recipe, data)
        try:
            if store.get(recipe.key) is not None:
                stored.add(recipe.key)
        except StoreError as error:  # its job says so too, and no other is stopped by it
            reason = str(error)
        if not reason:
            alike.setdefault(shared(job.config, recipe), {}).setdefault(recipe.key, job)
        elif recipe.key not in stored:
            found.apart.setdefault(reason, []).append(job)
    for key, students in alike.items():
        for number, places in enumerate(_parts(list(students))):
            some = [students[student] for student in places if student not in stored]
            name = f"together-{hashlib.sha256(f'{key} {number}'.encode()).hexdigest()[:16]}"
            if len(some) > 1 or (some and checkpoints.begun(network_folder(folder, name) / CHECKPOINTS / CHECKPOINT)):
                task = network_task(some[0], folder, name, "student", sweep)
                found.tasks.append(replace(task, students=tuple(asdict(job.config) for job in some)))
                found.students += len(some)
            elif some:
                found.apart.setdefault("no other student has the same data, network, teacher and seed", []).extend(some)
    return found


def _parts(students: list[str]) -> list[list[str]]:
    """Students divided into groups of at most `MOST`, of nearly the same size."""
    count = -(-len(students) // MOST)
    return [students[number::count] for number in range(count)]


def shared(config: RunConfig, recipe: "Recipe") -> str:
    """All that the students of a group have in common, as one text."""
    objective = recipe.objective()
    own = ("method", "optim", "layers", "peer", "initial")
    content = {name: value for name, value in recipe.content.items() if name not in own}
    layers = [objective.layers(side) for side in ("student", "teacher")]
    where = [config.data, asdict(config.trainer), config.store.root]
    return json.dumps([content, layers, where], sort_keys=True, default=str)


def why_apart(config: RunConfig, recipe: "Recipe", data: Any) -> str:
    """Why a student cannot be trained together with others; empty if it can."""
    from kd.data.images import ImageData

    if parallel.processes(config.trainer) > 1:
        return "several processes train each of them (trainer=ddp)"
    if not isinstance(data, ImageData):
        return f"the order and the augmentation of {data.name} are its own, and may differ from run to run"
    if recipe.teacher.kind == "ema" and recipe.objective().needs_teacher:
        return "their teacher is the average of the student itself (teacher=ema)"
    if config.trainer.compile == "on":
        return "trainer.compile=on makes one function of each student and its teacher"
    if recipe.precision == "16-mixed":
        return "trainer.precision=16-mixed scales the gradients of each by their own size"
    return ""


def train_students(task: Task, console: Console) -> str:
    """Do a task that is a group: train its students and leave them in the store. Returns what is to be told of it.

    Raises `BusyError` if another process is at it.
    """
    from kd import build
    from kd.lockstep.train import train_together
    from kd.quiet import quiet
    from kd.recipe import plan
    from kd.store import Store
    from kd.train import Trainings

    quiet()
    configs = [restored(one) for one in task.students]
    first = configs[0]
    build.device(first.trainer)
    data = build.data(first)
    students = [plan(config, data).student for config in configs]
    recipes = {recipe.key: recipe for recipe in students}
    trainings = Trainings(
        data, Store(first.store.root), task.folder / CHECKPOINTS, first.trainer, console, lambda *_: None,
        cache=first.teacher.cache,
    )  # fmt: skip
    with owned(task.folder):  # two processes that take part in a sweep may each hold some of a group's students
        done = train_together(trainings, list(recipes.values()), WAYS[first.sweep])
    words = {key: recipe.objective().describe() for key, recipe in recipes.items()}
    told = [f"{len(done.entries)} of {len(recipes)} students are in the store"]
    if done.choice is not None:
        told[0] += f"; {done.choice.describe()}, one teacher forward for all"
    told += [f"  left to its job: {words[key]}: {reason}" for key, reason in done.left.items()]
    return "\n".join(told)
