"""The LightningModule that trains many students on the same batches, with one forward pass of their teacher."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from kd.callbacks import KeepBest, WarnAtChance
from kd.curves import TidyCsv
from kd.data.images import ImageData
from kd.data.keyed import key_seed
from kd.distiller import Distiller, Sums
from kd.finite import Watch, broken_weights
from kd.lockstep.choose import Choice, choose, make
from kd.lockstep.ways import Learner, Way, draws
from kd.recipe import Node, Recipe
from kd.teachers import Teacher
from kd.types import Batch, Output


class Member:
    """One student of a group: its recipe, the module that it would be trained in alone, its best epoch, its curves."""

    def __init__(
        self, recipe: Recipe, module: Distiller, model: Node, curves: TidyCsv, at_chance: WarnAtChance | None
    ) -> None:
        self.recipe, self.module, self.model, self.curves = recipe, module, model, curves
        self.best, self.at_chance = KeepBest(), at_chance
        self.learner: Learner | None = None
        self.failure = ""  # why it is no longer trained
        self._resumed: dict[str, Any] | None = None

    def begin(self, steps_per_epoch: int) -> Learner:
        """Make the optimiser and its schedule, once the network is on its device."""
        module, recipe = self.module, self.recipe
        self.learner = Learner(
            module.student,
            module.objective,
            module.make_optimizer,
            lambda optimizer: module.make_schedule(optimizer, steps_per_epoch, recipe.epochs),
            kind=repr((recipe.optim, recipe.gradient_clip_val, self.model)),
            clip=recipe.gradient_clip_val,
        )
        if self._resumed is not None:
            self.learner.load((self._resumed["optimizer"], self._resumed["schedule"]))
        return self.learner

    def state_dict(self) -> dict[str, Any]:
        assert self.learner is not None
        return {
            "student": self.module.student.state_dict(),
            "objective": self.module.objective.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "schedule": self.learner.schedule.state_dict(),
            "best": self.best.state_dict(),
            "at_chance": self.at_chance and self.at_chance.state_dict(),
            "failure": self.failure,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.student.load_state_dict(state["student"])
        self.module.objective.load_state_dict(state["objective"])
        self.best.load_state_dict(state["best"])
        if self.at_chance is not None:
            self.at_chance.load_state_dict(state["at_chance"])
        self.failure = state["failure"]
        self._resumed = state


class Lockstep(L.LightningModule):
    """Trains students that share seed, data and teacher, each with its own loss, optimiser and random draws.

    `way` is "stacked", "looped", or "auto": whichever is faster on the first batch. A student whose loss is not finite
    is told to `say` and left out from that step on (on a GPU: as soon as it is known); the others go on.
    """

    strict_loading = False  # the members' states have a place of their own in a checkpoint

    def __init__(self, members: Sequence[Member], teacher: Teacher, way: str, say: Callable[[str], None]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.members = list(members)
        self.networks = nn.ModuleList(
            nn.ModuleList([member.module.student, member.module.objective]) for member in members
        )
        self.teacher = teacher
        self.way = way
        self.say = say
        self.choice: Choice | None = None
        self.taken: str | None = None  # the way of the latest step, also of one before a cut
        self.students = len(members)  # that the group began with
        self._ways: list[Way] = []
        self._is_new_epoch = True
        self._step = 0  # of this epoch, from 1
        self._watch = Watch()
        self._layout: torch.memory_format | None = None
        self._validated: list[Sums] = []

    @property
    def active(self) -> list[Member]:
        return [member for member in self.members if not member.failure]

    def configure_optimizers(self) -> None:
        """Each member has its own, which Lightning need not know."""

    @property
    def data(self) -> ImageData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageData), "only their batches are known to be the same for all students"
        return data

    def setup(self, stage: str) -> None:
        for member in self.members:
            member.module.setup(stage)

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)
        for member in self.members:
            member.begin(self.data.steps_per_epoch())

    def on_fit_end(self) -> None:
        for member in self.members:
            member.module.student.to(memory_format=torch.contiguous_format)

    def on_train_epoch_start(self) -> None:
        # as a student alone: its draws follow from (seed, epoch)
        torch.manual_seed(key_seed(self.members[0].recipe.seed, self.current_epoch))
        self._is_new_epoch, self._step = True, 0
        for member in self.active:
            assert member.learner is not None
            member.learner.sums = Sums()
        self.prepare_epoch()

    def prepare_epoch(self) -> None:
        for member in self.active:
            member.module.objective.begin_epoch(self.current_epoch)
        with self.trainer.precision_plugin.train_step_context():
            self.teacher.begin_epoch(self.current_epoch, channels_last=self.take_channels_last)

    def within_epoch(self) -> dict[str, Any]:
        """The students' sums and random draws of the present epoch so far, for a checkpoint."""
        pending = {learner: own for way in self._ways for learner, own in zip(way.learners, way.pending(), strict=True)}
        return {
            member.recipe.key: {
                "sums": member.learner.sums.state_dict(),
                "pending": pending[member.learner].state_dict(),
                "draws": member.learner.draws,
            }
            for member in self.active
            if member.learner is not None
        }

    def resume_within_epoch(self, state: dict[str, Any]) -> None:
        for member in self.active:
            assert member.learner is not None
            own = state[member.recipe.key]
            member.learner.sums = Sums.from_state(own["sums"], self.device)
            member.learner.pending = Sums.from_state(own["pending"], self.device)
            member.learner.draws = own["draws"]
            seen = member.learner.sums.count + member.learner.pending.count
            self._step = math.ceil(seen / self.data.batch_size)
        self._is_new_epoch = False

    def training_step(self, dataloader_iter: Iterator[Any]) -> None:
        """Fetch a batch, which may hold several steps (see `kd.distiller`), and train on it."""
        batch, *_ = next(dataloader_iter)
        batch, size = self.data.on_device(batch, self.device), self.data.images_per_step()
        for parts in zip(*(torch.split(part, size or len(part)) for part in batch), strict=True):
            self.step(Batch(*parts))

    def step(self, batch: Batch) -> None:
        """Ask the teacher, and train every student that has not failed."""
        if not self.active:
            return
        if self._layout is None:
            self._layout = self._prepared(batch)
        batch = batch._replace(image=batch.image.contiguous(memory_format=self._layout))
        teacher = self.teacher(batch)
        if self._is_new_epoch:
            self._is_new_epoch, start = False, draws(self.device)
            for learner in self._learners():
                learner.draws = start
        if not self._ways:
            self._ways = self._chosen(batch, teacher)
        for way in self._ways:
            way.step(batch, teacher)
        self._step += 1
        if bad := self._watch.see(self._step, {"loss": torch.stack([way.losses.sum() for way in self._ways]).sum()}):
            self._part(bad.step)

    def _prepared(self, batch: Batch) -> torch.memory_format:
        """Let the teacher get ready, and return how images are laid out: as for a student alone."""
        with torch.no_grad():
            fits = self.teacher.hurry(batch.image)
        return torch.channels_last if fits and self.take_channels_last else torch.contiguous_format

    @property
    def take_channels_last(self) -> bool:
        """Whether every student takes images that are laid out as (B, H, W, C)."""
        return all(member.module.loss.is_channels_last for member in self.members)

    def _learners(self) -> list[Learner]:
        return [member.learner for member in self.active if member.learner is not None]

    def _chosen(self, batch: Batch, teacher: Output | None) -> list[Way]:
        learners = self._learners()
        if self.choice is None:
            self.choice = choose(learners, batch, teacher, self.way)
            what = "no teacher" if teacher is None else "one teacher forward for all"
            self.taken = self.choice.way
            self.say(f"{len(learners)} students together, {self.choice.describe()}, {what}")
        return make(self.choice.way, learners)

    def images(self, batch: Batch, batch_idx: int) -> int:
        return len(batch.target)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After the last step, before validation: read the epoch's means, and part with students that have failed."""
        if not self.trainer.is_last_batch:
            return
        bad = self._watch.look()
        self._part(bad.step if bad else None)
        for member in self.active:
            assert member.learner is not None
            if broken := broken_weights(member.module):
                self._leave_out(
                    member, f"weights became NaN or infinite in epoch {self.current_epoch + 1} ({broken[0]})"
                )
            rate = member.learner.optimizer.param_groups[0]["lr"]
            member.module.epoch_means["train"] = {**member.learner.sums.means(), "lr": rate}
        if not self.active:
            self.trainer.should_stop = True

    def _part(self, step: int | None) -> None:
        """Give the students all they have learned; leave out those whose losses, or sums of them, are not finite."""
        for way in self._ways:
            way.settle()
            way.sum_up()
        for member in self.active:
            assert member.learner is not None
            means = member.learner.sums.means()
            if broken := [name for name, value in means.items() if not math.isfinite(value)]:
                rate = member.learner.optimizer.param_groups[0]["lr"]
                at = f"epoch {self.current_epoch + 1}" + (f", step {step}" if step else "")
                self._leave_out(
                    member, f"{', '.join(broken)} became NaN or infinite in {at} (learning rate {rate:.3g})"
                )

    def _leave_out(self, member: Member, why: str) -> None:
        member.failure = why
        self._ways = []  # made anew of the others
        self.say(f"left out: {member.module.objective.describe()}: {why}")

    def on_validation_epoch_start(self) -> None:
        self._validated = [Sums() for _ in self.active]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for member, sums in zip(self.active, self._validated, strict=True):
            logits = member.module.student(batch.image).logits.float()
            correct = (logits.argmax(1) == batch.target).sum()
            nll = F.cross_entropy(logits, batch.target, reduction="sum")
            sums.add(len(batch.target), {"accuracy": correct, "nll": nll})

    def on_validation_epoch_end(self) -> None:
        for member, sums in zip(self.active, self._validated, strict=True):
            member.module.epoch_means["val"] = sums.means()
            self._log(member, "val")
            member.best.on_validation_end(self.trainer, member.module)
            if member.at_chance is not None:
                member.at_chance.on_validation_end(self.trainer, member.module)

    def on_train_epoch_end(self) -> None:
        self.teacher.end_epoch()
        for member in self.active:
            self._log(member, "train")

    def _log(self, member: Member, split: str) -> None:
        step = (self.current_epoch + 1) * self.data.steps_per_epoch() - 1
        means = {f"student/{split}/{name}": value for name, value in member.module.epoch_means[split].items()}
        member.curves.log_metrics({**means, "epoch": self.current_epoch}, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for way in self._ways:
            way.settle()
        checkpoint["state_dict"] = {}
        checkpoint["way"], checkpoint["students"] = self.taken, self.students
        checkpoint["members"] = {member.recipe.key: member.state_dict() for member in self.members}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.taken, self.students = checkpoint["way"], checkpoint["students"]
        if self.way == "auto":  # both round differently: a group ends in the way in which it has begun
            self.way = checkpoint["way"]
        for member in self.members:
            member.load_state_dict(checkpoint["members"][member.recipe.key])
