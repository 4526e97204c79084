"""Find a network in the store, or train it with Lightning and put it there."""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console
from torch import nn

from kd import build
from kd.callbacks import KeepBest, OwnSignals, SaveEpoch, ShowProgress, Speed
from kd.curves import TidyCsv, read_metrics
from kd.data import DistillationData
from kd.distiller import Distiller
from kd.errors import StoreError
from kd.parallel import ProcessLostError, Team, is_broken_connection
from kd.recipe import Node, Plan, Recipe, TeacherPlan
from kd.schema import TrainerConfig
from kd.store import Entry, Store
from kd.strategy import devices
from kd.taps import Tapped
from kd.teachers import Ema, Frozen, Teacher

EMA_SUFFIX = "-ema"  # the store entry of the averaged network beside its student's
TERMS_SUFFIX = "-terms"  # that of what a first stage's terms have learned
Seen = TypeVar("Seen")
SHARED_FOLDER_S = 120.0  # until what one machine has written in a shared folder must be seen by another one


@dataclass
class Trainings:
    """Obtains the networks of one run; a recipe is trained at most once, here or in any run that shares the store."""

    data: DistillationData
    store: Store
    folder: Path  # where unfinished trainings keep their checkpoint and curves
    settings: TrainerConfig
    console: Console
    start_logger: Callable[[Recipe, Sequence[dict[str, str]]], Logger | None]  # given the rows of the curves so far
    team: Team = field(default_factory=Team)
    _obtained: dict[str, Entry] = field(default_factory=dict)

    def obtain(self, recipe: Recipe) -> Entry:
        """Return a trained network: from the store, or trained now."""
        if recipe.key not in self._obtained:
            if found := self._stored(recipe.key):
                self._say(recipe, f"found in {found.folder}")
            self._obtained[recipe.key] = found or self._train_once(recipe)
        return self._obtained[recipe.key]

    def follow(self, recipe: Recipe, begun: int) -> None:
        """Train a network, from the epochs already `begun`, together with the process that leads, which stores it."""
        self._fit(recipe, self._module(recipe)[0], begun)

    def network(self, trained: Entry, role: str) -> nn.Module:
        """Build an entry's network and fill it with its weights."""
        network = build.network(trained.meta["model"], self.data, role)
        trained.load_into(network)
        return network

    def delivered(self, recipe: Recipe) -> dict[str, Entry]:
        """The networks that a recipe delivers beside its own, by name."""
        found = {}
        for name in self.obtain(recipe).meta.get("delivered", []):
            entry = self.store.get(f"{recipe.key}-{name}")
            assert entry is not None, f"{name} is stored before its student"
            found[name] = entry
        return found

    def teacher_arm(self, planned: Plan) -> tuple[Teacher, Node, str, dict[str, Any]] | None:
        """The run's teacher, its model, key and meta; None if it has no network."""
        plan = planned.teacher
        if plan.kind == "ema":  # the average lies in the store beside its student
            entry = self.store.get(planned.student.key + EMA_SUFFIX)
            assert entry is not None, "an EMA teacher is stored before its student"
            network = self.network(entry, "teacher")
            return Frozen(Tapped(network)), planned.student.model, entry.key, entry.meta
        if not plan.members:
            return None
        teacher = build.teacher(plan, self._members(plan), [], self.data.num_classes)
        metas = [self.obtain(m).meta if isinstance(m, Recipe) else {} for m in plan.members]
        meta = metas[0]
        if len(metas) > 1 and all(metas):  # an ensemble's cost is its members' sum
            seconds = sum(one["train_s"] for one in metas)
            speed = sum(one["train_s"] * one["images_per_s"] for one in metas) / (seconds or 1)
            meta = {"epochs": meta["epochs"], "train_s": seconds, "images_per_s": speed}
        return teacher, plan.members[0].model, "+".join(member.key for member in plan.members), meta

    def _members(self, plan: TeacherPlan) -> list[nn.Module]:
        """The trained networks that a teacher is made of."""
        networks = []
        for member in plan.members:
            if isinstance(member, Recipe):
                networks.append(self.network(self.obtain(member), "teacher"))
            else:
                networks.append(build.foreign_network(member, self.data))
        return networks

    def _train_once(self, recipe: Recipe) -> Entry:
        """Train, unless another run is at it: then wait for that one's."""
        for member in (*recipe.teacher.members, recipe.initial):
            if isinstance(member, Recipe):
                self.obtain(member)
        waiting = f"another run is training it; waiting for {self.store.root / recipe.key}.lock"
        with self.store.lock(recipe.key, on_wait=lambda: self._say(recipe, waiting)):
            return self.store.get(recipe.key) or self._train(recipe)

    def _train(self, recipe: Recipe) -> Entry:
        """Train a recipe's network; one of no epochs, a teacher for a control, is stored as it starts."""
        module, model = self._module(recipe)
        if recipe.epochs == 0:
            self._say(recipe, "untrained")
            return self._put(recipe, module, self._meta(recipe, model, KeepBest(), Speed()))
        on = f" on {self.team.size} processes" if self.team.size > 1 else ""
        self._say(recipe, f"training {recipe.epochs} epochs{on}: {module.objective.describe()}")
        best, speed, curves = self._fit(recipe, module)
        best.restore(module)
        entry = self._put(recipe, module, self._meta(recipe, model, best, speed), curves)
        chosen = best.validation()
        told = (
            f", validation accuracy {chosen['accuracy']:.2%} (epoch {entry.meta['selected_epoch']})" if chosen else ""
        )
        self._say(recipe, f"done in {speed.elapsed_s():,.1f} s{told}")
        curves.unlink()
        checkpoint = curves.with_suffix(".ckpt")
        if recipe.label == "student":
            checkpoint.replace(self.folder / "student.ckpt")
        else:
            checkpoint.unlink()  # the weights are in the store
        return entry

    def _module(self, recipe: Recipe) -> tuple[Distiller, Node]:
        """Build what a recipe trains, as it is before the first step, and the configuration of its network."""
        data = self.data.use(recipe.view)
        teacher = build.teacher_of(recipe, self._members(recipe.teacher), data)
        student, objective, model = build.student(recipe, data, teacher)
        if recipe.initial:
            self.obtain(recipe.initial).load_into(student.network)
            learned = self._stored(recipe.initial.key + TERMS_SUFFIX)
            if learned is None:
                raise StoreError(
                    f"{self.store.root} has no {recipe.initial.key}{TERMS_SUFFIX} beside {recipe.initial.key}. "
                    "Delete the latter; the first stage is then trained again."
                )
            objective.carry_over(learned.weights())
        optimizer, schedule = build.optimizer_and_schedule(recipe)
        module = Distiller(
            recipe.view.arm, student, teacher, objective, optimizer, schedule,
            seed=recipe.seed, compiled=self.settings.compile,
        )  # fmt: skip
        return module, model

    def _stored(self, key: str) -> Entry | None:
        """The entry of a network; None if it is still to be trained, which is never so where another process leads."""
        if self.team.leads:
            return self.store.get(key)
        what = f"{self.store.root} does not have {key}: store.root"
        return _seen_here(lambda: self.store.get(key), lambda found: found is not None, what)

    def _meta(self, recipe: Recipe, model: Node, best: KeepBest, speed: Speed) -> dict[str, Any]:
        """What the store says about a trained network; the time of a first stage counts."""
        return {
            "recipe": recipe.content,
            "model": model,
            "class_names": self.data.class_names,
            "mean": self.data.mean,
            "std": self.data.std,
            "val": best.validation(),
            "selected_epoch": recipe.epochs if best.epoch is None else best.epoch + 1,
            "epochs": recipe.epochs,
            "initial_epochs": recipe.initial.epochs if recipe.initial else 0,
            "train_s": speed.elapsed_s() + (self.obtain(recipe.initial).meta["train_s"] if recipe.initial else 0.0),
            "images_per_s": speed.images_per_s(),
        }

    def _put(self, recipe: Recipe, module: Distiller, meta: dict[str, Any], curves: Path | None = None) -> Entry:
        """Store the trained network; before it, so that none is missing, what belongs beside it."""
        delivered = module.objective.delivered()
        if isinstance(module.teacher, Ema):
            self.store.put(recipe.key + EMA_SUFFIX, module.teacher.single(), {**meta, "val": None})
        for name, network in delivered.items():
            self.store.put(f"{recipe.key}-{name}", network, {**meta, "model": recipe.peer, "val": None})
        if recipe.is_initial:
            self.store.put(recipe.key + TERMS_SUFFIX, module.objective.terms, meta)
        return self.store.put(recipe.key, module.student.network, {**meta, "delivered": list(delivered)}, curves)

    def _fit(self, recipe: Recipe, module: Distiller, begun: int | None = None) -> tuple[KeepBest, Speed, Path]:
        """Train, from the last whole epoch if an earlier run was cut off. Raises KeyboardInterrupt on Ctrl-C."""
        checkpoint = self.folder / f"{recipe.key}.ckpt"
        curves = TidyCsv(self.folder / f"{recipe.key}.csv", recipe.label)
        resumed = _epochs_done(checkpoint) if begun is None else _epochs_agreed(checkpoint, begun)
        best, speed = KeepBest(), Speed()
        callbacks: list[Callback] = [best, speed, SaveEpoch(checkpoint)]
        if self.team.size > 1:
            callbacks.append(OwnSignals())
        loggers: list[Logger | None] = []
        if self.team.leads:
            self.folder.mkdir(parents=True, exist_ok=True)
            if resumed:
                self._say(recipe, f"continuing after epoch {resumed} of {recipe.epochs}")
            curves.resume(resumed)
            loggers = [curves, self.start_logger(recipe, read_metrics(curves.path))]
            callbacks.append(ShowProgress(self.console, recipe.label, speed))
            self.team.announce({"network": recipe.key, "folder": str(self.folder), "begun": resumed})
        trainer = L.Trainer(
            max_epochs=recipe.epochs,
            **devices(self.settings, self.team, module, self.data),
            precision=recipe.precision,  # type: ignore[arg-type]
            gradient_clip_val=recipe.gradient_clip_val,
            deterministic=self.settings.deterministic,
            logger=[logger for logger in loggers if logger is not None],
            callbacks=callbacks,
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            limit_val_batches=None if self.data.counts()["val"] and not recipe.is_initial else 0,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(module, datamodule=self.data, ckpt_path=checkpoint if resumed else None, weights_only=True)
        except SystemExit as left:
            if left.code == 1:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        except RuntimeError as error:
            if self.team.size > 1 and is_broken_connection(error):
                raise ProcessLostError(
                    "Another process of this run has ended. The same command continues the run."
                ) from error
            raise
        return best, speed, curves.path

    def _say(self, recipe: Recipe, text: str) -> None:
        self.console.print(f"{recipe.label}  {text}", highlight=False, markup=False, soft_wrap=True)


def _epochs_done(checkpoint: Path) -> int:
    """How many whole epochs a checkpoint holds; 0 if there is none. Raises `StoreError` if it cannot be read."""
    if not checkpoint.is_file():
        return 0
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["epoch"]) + 1
    except Exception as error:  # a damaged file fails in as many ways as it can be damaged
        raise StoreError(f"{checkpoint} is damaged ({str(error).splitlines()[0]}). Delete it to start anew.") from error


def _epochs_agreed(checkpoint: Path, begun: int) -> int:
    """How many epochs a checkpoint holds, as the leading process has told. Raises `StoreError` if it is not seen."""
    what = f"{checkpoint} does not hold the {begun} epochs that have been trained: the run folder"
    return _seen_here(lambda: _epochs_done(checkpoint), lambda found: found == begun, what)


def _seen_here(look: Callable[[], Seen], is_right: Callable[[Seen], bool], what: str) -> Seen:
    """Wait until this machine sees what the leading process, perhaps on another one, has written. Or `StoreError`."""
    waited_until = time.monotonic() + SHARED_FOLDER_S
    while not is_right(found := look()):
        if time.monotonic() > waited_until:
            raise StoreError(
                f"On {socket.gethostname()} {what} must be a folder that all machines share, and the first process of "
                "this run sees it otherwise."
            )
        time.sleep(0.5)
    return found
