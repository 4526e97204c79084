"""Trains a student by every method, for a few steps; the test starts this as two processes, and calls it alone.

In double precision: what is left between one process and two is then no rounding error that training has enlarged.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from kd import build
from kd.data import ImageData
from kd.dry_run import dry_run
from kd.parallel import Team
from kd.quiet import quiet
from kd.recipe import plan
from kd.store import Store
from kd.train import Trainings
from tests.commands import SMALL_CNNS, configured

METHODS = sorted(path.stem for path in Path(__file__).parents[1].glob("conf/method/*.yaml"))
# 45 images in batches of 18: the last one has 9, of which two processes get 5 and 4; 4 and 3 of 7 are for validation
DATA = ("data.batch_size=18", "data.train_limit=45", "data.val=7", "data.test_limit=4", "data.augment=shift")
# plain SGD: Adam would turn rounding errors of tiny gradients into whole steps
TRAINING = ("optim=sgd", "optim.optimizer.lr=0.01", "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=csv")
TEACHER = ("teacher=random",)  # untrained: a teacher all the same
CASES = {
    **{name: (f"method={name}", *TEACHER) for name in METHODS},
    "ema": ("method=kd", "teacher=ema", "teacher.decay=0.5"),
    "ensemble": ("method=dist", "teacher=ensemble", "teacher.size=2", "teacher.max_epochs=1"),
    "generations": ("method=hint", "teacher=self", "teacher.generations=2", "teacher.max_epochs=1"),
    "late_term": (
        "method=hint",
        "trainer.max_epochs=2",
        "+method.terms.hint.schedule.start_epoch=1",
        "optim.optimizer.fused=false",
        *TEACHER,
    ),
    "clipped": ("method=kd", "trainer.gradient_clip_val=0.1", *TEACHER),
    "vectors": ("method=vid", "model@student=mlp", "model@teacher.model=mlp", *TEACHER),
    "quantized": ("method=kd", "model@student=resnet20_int8", "student.network.depth=8", *TEACHER),
    "pruned": (
        "method=kd",
        "model@student=resnet20_pruned",
        "student.network.depth=8",
        "student.ramp=3",
        "student.every=1",
        *TEACHER,
    ),
}


@contextmanager
def double_precision() -> Iterator[None]:
    normalise = ImageData._normalise
    torch.set_default_dtype(torch.float64)
    ImageData._normalise = lambda data, image: normalise(data, image).double()
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        ImageData._normalise = normalise


@double_precision()
def train_all(folder: Path, strategy: str, devices: int) -> None:
    """Leave the networks of every case in `folder`/CASE; as the only process, or as one of several."""
    quiet()
    team = None
    for name, overrides in CASES.items():
        together = (f"trainer.strategy={strategy}", f"trainer.devices={devices}")
        networks = () if any("model@student=mlp" in one for one in overrides) else SMALL_CNNS
        if "teacher=self" in overrides or "teacher=ema" in overrides:
            networks = SMALL_CNNS[:1]
        config = configured(*DATA, *TRAINING, *networks, *overrides, *together)
        team = team or Team(config.trainer)
        data = build.data(config)
        planned = plan(config, data)
        if team.leads and team.size == 1:
            dry_run(planned, data, processes=2)  # refuses nothing
        store = Store(folder / name)
        trainings = Trainings(data, store, folder / "part", config.trainer, Console(quiet=True), lambda *_: None, team)
        if team.leads:
            trainings.obtain(planned.student)
            team.announce({"case": name})
            continue
        recipes = {recipe.key: recipe for recipe in planned.recipes()}
        while "network" in (task := team.next_task() or {}):
            trainings.follow(recipes[task["network"]], task["begun"])
        assert task == {"case": name}


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), "ddp", 2)
