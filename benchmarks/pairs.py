"""The pairs of networks that are measured, and a training of kd's on random images for them.

What a step costs does not depend on what the images show, nor on how good the teacher is, so nothing is downloaded and
no teacher is trained.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from kd.cli import compose
from kd.data.resident import ResidentData
from kd.distiller import Distiller
from kd.quiet import quiet
from kd.recipe import Plan, Recipe, plan
from kd.rules import check
from kd.schema import RunConfig
from kd.store import Store
from kd.train import Trainings


@dataclass(frozen=True)
class Pair:
    """Teacher and student: the experiment that trains them, and the images they see."""

    experiment: str
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    title: str


CIFAR: Any = {"image_shape": (3, 32, 32), "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
PAIRS = {
    "mnist": Pair("mnist_kd", (1, 28, 28), (0.1307,), (0.3081,), "MNIST 1200 to 800"),
    "rn34_cnn": Pair("cifar_kd", **CIFAR, title="ResNet-34 to cnn3"),
    "r110_r20": Pair("cifar_resnet", **CIFAR, title="ResNet-110 to ResNet-20"),
}


class RandomImages(ResidentData):
    """Random uint8 images in ten classes; the same ones whenever there are as many."""

    name = "random"
    class_names = [str(label) for label in range(10)]

    def __init__(self, pair: Pair, count: int, **common: Any) -> None:
        self.pair, self.count = pair, count
        self.mean, self.std = list(pair.mean), list(pair.std)
        super().__init__(root="", **common)

    def read(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        images, labels = random_images(self.pair, self.count)
        return {"train": (images, labels), "test": (images[:2], labels[:2])}


def random_images(pair: Pair, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, *pair.image_shape), dtype=np.uint8)
    return images, generator.integers(0, 10, count)


def configured(pair: Pair, batch: int, *overrides: str) -> RunConfig:
    """The pair's experiment as it is run, with an untrained teacher, in the precision that `auto` chooses."""
    own = (f"experiment={pair.experiment}", "teacher=random", "trainer.precision=auto", "trainer.max_epochs=1")
    return check(compose([*own, "logger=csv", f"data.batch_size={batch}", *overrides]))


class Training:
    """kd's own training of a pair's student: data, teacher, objective, optimiser, callbacks, bar, curves as in a run.

    A `watcher` hears of every step. `cached_in`: a folder whose teacher cache is filled and used; None: a live teacher.
    """

    def __init__(
        self, pair: Pair, batch: int, steps: int, *overrides: str, cached_in: Path | None = None, epochs: int = 1
    ) -> None:
        quiet()
        self.config = configured(
            pair,
            batch,
            f"teacher.cache={'off' if cached_in is None else 'only'}",
            f"trainer.max_epochs={epochs}",
            *overrides,
        )
        augment = self.config.data["augment"]
        self.data = RandomImages(pair, batch * steps, batch_size=batch, val=0, augment=augment)
        self.data.group_steps(self.config.trainer.steps_per_call)
        self.planned: Plan = plan(self.config, self.data)
        self.precision = self.planned.student.precision
        self.cached_in = cached_in

    def run(self, *watchers: Callback) -> Distiller:
        """Train the student from the start; its network is not stored."""
        with self.trainings(watchers) as trainings:
            student = self.planned.student
            for member in student.teacher.members:
                assert isinstance(member, Recipe)
                trainings.obtain(member)
            module, _ = trainings.module(student)
            trainings._fit(student, module)
            return module

    @contextmanager
    def trainings(self, watchers: Sequence[Callback] = ()) -> Iterator[Trainings]:
        """What obtains networks, in a folder that is gone afterwards, with a bar that nobody sees."""
        with tempfile.TemporaryDirectory() as folder, (Path(folder) / "screen").open("w") as screen:
            root, console = Path(folder), Console(file=screen, force_terminal=True, width=100)
            yield Trainings(
                self.data, Store(self.cached_in or root / "store"), root / "part", self.config.trainer, console,
                lambda *_: None, cache=self.config.teacher.cache, watchers=watchers,
            )  # fmt: skip

    def network(self, side: str) -> torch.nn.Module:
        """A new network of the pair's "student" or "teacher"."""
        from kd import build

        model = self.planned.student.model if side == "student" else self.planned.teacher.members[0].model
        torch.manual_seed(0)
        return build.network(model, self.data, side)
