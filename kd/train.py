"""Find a network in the store, or train it with Lightning and put it there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console
from torch import nn

from kd import build, checkpoints
from kd.cached_teacher import Cached
from kd.callbacks import KeepBest, ShowProgress, Speed, WarnAtChance
from kd.chance import guessing
from kd.checkpoints import Found
from kd.curves import TidyCsv, read_metrics
from kd.data import DistillationData, ImageData
from kd.distiller import Distiller
from kd.errors import StoreError
from kd.fit import fit
from kd.parallel import Team
from kd.recipe import Node, Plan, Recipe, TeacherPlan
from kd.saving import Save, checkpoint_size, refuse_other_calls
from kd.schema import TrainerConfig
from kd.seals import Unchanged
from kd.shared_folder import seen_here
from kd.signals import Signals
from kd.store import Entry, Store
from kd.taps import Tapped
from kd.teacher_cache import Caching
from kd.teachers import Ema, Frozen, Teacher

EMA_SUFFIX = "-ema"  # the store entry of the averaged network beside its student's
TERMS_SUFFIX = "-terms"  # that of what a first stage's terms have learned


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
    cache: str = "auto"  # teacher.cache
    watchers: Sequence[Callback] = ()  # more callbacks of every training
    _obtained: dict[str, Entry] = field(default_factory=dict)

    def obtain(self, recipe: Recipe) -> Entry:
        """Return a trained network: from the store, or trained now."""
        if recipe.key not in self._obtained:
            if found := self._stored(recipe.key):
                self._say(recipe, f"found in {found.folder}")
            self._obtained[recipe.key] = found or self._train_once(recipe)
        return self._obtained[recipe.key]

    def has_begun(self, recipe: Recipe) -> bool:
        """Whether a network is in the store, or its training has a checkpoint."""
        return self.store.get(recipe.key) is not None or checkpoints.begun(self.folder / f"{recipe.key}.ckpt")

    def follow(self, recipe: Recipe, begun: str) -> None:
        """Train a network, from the checkpoint of SHA-256 `begun`, with the process that leads, which stores it."""
        self._fit(recipe, self.module(recipe)[0], begun)

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
        module, model = self.module(recipe)
        if recipe.epochs == 0:
            self._say(recipe, "untrained")
            return self.put(recipe, module, self.meta(recipe, model, KeepBest(), Speed()))
        on = f" on {self.team.size} processes" if self.team.size > 1 else ""
        self._say(recipe, f"training {recipe.epochs} epochs{on}: {module.objective.describe()}")
        best, speed, curves = self._fit(recipe, module)
        best.restore(module)
        entry = self.put(recipe, module, self.meta(recipe, model, best, speed), curves)
        chosen = best.validation()
        told = (
            f", validation accuracy {chosen['accuracy']:.2%} (epoch {entry.meta['selected_epoch']})" if chosen else ""
        )
        self._say(recipe, f"done in {speed.elapsed_s():,.1f} s{told}")
        if isinstance(module.teacher, Cached) and (summary := module.teacher.summary(speed.elapsed_s())):
            self._say(recipe, summary)
        curves.unlink()
        checkpoint = curves.with_suffix(".ckpt")
        if recipe.label == "student":
            checkpoint.replace(self.folder / "student.ckpt")
        checkpoints.remove(checkpoint)  # the weights are in the store
        return entry

    def module(self, recipe: Recipe, teacher: Teacher | None = None) -> tuple[Distiller, Node]:
        """Build what a recipe trains, as it is before the first step, and the configuration of its network.

        `teacher`: that of a module that was built for a recipe with the same one.
        """
        data = self.data.use(recipe.view)
        shared = teacher
        teacher = teacher or build.teacher_of(recipe, self._members(recipe.teacher), data)
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
        if shared is None:
            caching = Caching(self.cache, self.store.root)
            teacher = caching.around(teacher, recipe, data, lambda text: self._say(recipe, text))
        module = Distiller(
            recipe.view.arm, student, teacher, objective, optimizer, schedule,
            seed=recipe.seed, gradient_clip_val=recipe.gradient_clip_val, image_shape=data.image_shape,
            step_images=data.images_per_step(), compiling=self.settings.compile,
            say=lambda text: self._say(recipe, text),
        )  # fmt: skip
        return module, model

    def _stored(self, key: str) -> Entry | None:
        """The entry of a network; None if it is still to be trained, which is never so where another process leads."""
        if self.team.leads:
            return self.store.get(key)
        what = f"{self.store.root} does not have {key}: store.root"
        return seen_here(lambda: self.store.get(key), lambda found: found is not None, what)

    def meta(self, recipe: Recipe, model: Node, best: KeepBest, speed: Speed) -> dict[str, Any]:
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

    def put(self, recipe: Recipe, module: Distiller, meta: dict[str, Any], curves: Path | None = None) -> Entry:
        """Store the trained network; before it, so that none is missing, what belongs beside it."""
        delivered = module.objective.delivered()
        if isinstance(module.teacher, Ema):
            self.store.put(recipe.key + EMA_SUFFIX, module.teacher.single(), {**meta, "val": None})
        for name, network in delivered.items():
            self.store.put(f"{recipe.key}-{name}", network, {**meta, "model": recipe.peer, "val": None})
        if recipe.is_initial:
            self.store.put(recipe.key + TERMS_SUFFIX, module.objective.terms, meta)
        return self.store.put(recipe.key, module.student.network, {**meta, "delivered": list(delivered)}, curves)

    def _fit(self, recipe: Recipe, module: Distiller, begun: str | None = None) -> tuple[KeepBest, Speed, Path]:
        """Train, from the last checkpoint if an earlier run was cut off. Raises KeyboardInterrupt on Ctrl-C."""
        checkpoint = self.folder / f"{recipe.key}.ckpt"
        curves = TidyCsv(self.folder / f"{recipe.key}.csv", recipe.label)
        if begun is None:
            found = checkpoints.find(checkpoint, say=lambda text: self._say(recipe, text))
        else:
            found = _agreed(checkpoint, begun) if begun else None
        best, speed = KeepBest(), Speed()
        save = Save(
            checkpoint, self.settings.checkpoint_minutes, Signals(),
            within_epochs=isinstance(self.data, ImageData), steps_per_call=self.settings.steps_per_call,
        )  # fmt: skip
        callbacks: list[Callback] = [best, speed, Unchanged(), *self.watchers]
        if found and isinstance(self.data, ImageData):
            self.data.begin_at(found.epochs, found.batches)
        loggers: list[Logger | None] = []
        if self.team.leads:
            self.folder.mkdir(parents=True, exist_ok=True)
            if found:
                refuse_other_calls(found, self.settings.steps_per_call)
                self._say(recipe, f"continuing after {found.describe(recipe.epochs)}")
            else:
                checkpoints.refuse_full_disk(self.folder, checkpoint_size(module))
            curves.resume(found.epochs if found else 0)
            loggers = [curves, self.start_logger(recipe, read_metrics(curves.path))]
            if images := self.data.counts()["val"]:
                chance = guessing(self.data, recipe.view.arm)
                callbacks.append(WarnAtChance(lambda text: self._say(recipe, text), chance, images))
            callbacks.append(ShowProgress(self.console, recipe.label, speed))
            self.team.announce(
                {"network": recipe.key, "folder": str(self.folder), "begun": found.digest if found else ""}
            )
        fit(
            module, recipe, self.data, self.settings, self.team,
            callbacks=callbacks, loggers=[logger for logger in loggers if logger is not None],
            save=save, checkpoint=found.path if found else None,
        )  # fmt: skip
        return best, speed, curves.path

    def _say(self, recipe: Recipe, text: str) -> None:
        self.console.print(f"{recipe.label}  {text}", highlight=False, markup=False, soft_wrap=True)


def _agreed(checkpoint: Path, digest: str) -> Found:
    """The checkpoint that the leading process goes on from. Raises `StoreError` if it is not seen here."""
    what = f"{checkpoint} is not the checkpoint that the training goes on from: the run folder"
    found = seen_here(lambda: checkpoints.holding(checkpoint, digest), lambda one: one is not None, what)
    assert found is not None
    return found
