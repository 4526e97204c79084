"""The one LightningModule: a student, its teacher, an objective. Every arm of a run trains through it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd.batch_loss import BatchLoss
from kd.collectives import processes, total
from kd.data.base import DistillationData
from kd.data.keyed import key_seed
from kd.errors import NumericError
from kd.finite import Bad, Watch, broken_weights
from kd.frozen import takes_channels_last
from kd.losses.objective import Objective
from kd.optim import Schedule, refuse_several_losses
from kd.taps import Tapped
from kd.teachers import ITS_REMEDY, Teacher
from kd.types import Batch


class Distiller(L.LightningModule):
    """Trains `student` on `objective`. Reversed KD and self-KD differ only in which networks are passed in.

    Without a teacher's term the same module trains a teacher or a baseline. Sums are kept on the device and read once
    per epoch. Raises `NumericError` when a term was not finite in an epoch.

    The optimisation is Lightning's "manual" one: a step runs no hook but these, which halves what Python costs it. A
    batch of Lightning's may hold several steps (`trainer.steps_per_call`), each on `step_images` of its images.
    """

    def __init__(
        self,
        arm: str,
        student: Tapped,
        teacher: Teacher,
        objective: Objective,
        optimizer: Callable[..., Optimizer],
        schedule: Schedule,
        *,
        seed: int,
        gradient_clip_val: float | None = None,
        image_shape: Sequence[int] | None = None,
        step_images: int | None = None,
        compiling: str = "off",
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.arm = arm
        self.student = student
        self.objective = objective
        self.teacher = teacher  # no nn.Module: its weights stay out of this module's state
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.seed = seed
        self._watch = Watch()
        self.gradient_clip_val = gradient_clip_val
        self.image_shape = image_shape
        self.step_images = step_images
        self.loss = BatchLoss(student, teacher, objective, compiling, say)
        self.epoch_means: dict[str, dict[str, float]] = {}  # of the latest epoch, by split
        self.sums: dict[str, Sums] = {}  # of the present epoch, by split
        teacher.start(student)

    def training_step(self, dataloader_iter: Iterator[Any]) -> None:
        """Fetch a batch and train on it; with this signature Lightning does not handle the batch itself, at length."""
        batch, *_ = next(dataloader_iter)
        batch, size = self._received(batch), self.step_images
        if size is None or len(batch.target) <= size:
            self.step(batch)
            return
        for parts in zip(*(torch.split(part, size) for part in batch), strict=True):
            self.step(Batch(*parts))

    def _received(self, batch: Any) -> Batch:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, DistillationData):
            return data.on_device(batch, self.device)
        return Batch(*(part.to(self.device, non_blocking=True) for part in batch))

    def step(self, batch: Batch) -> None:
        """Train on a batch: losses, gradients, one step of the optimiser and of its schedule."""
        self._optimizer.zero_grad()  # first: the memory of a CUDA graph's gradients is about to be used again
        loss, terms = self.loss(batch)
        means = {"loss": loss.detach(), **terms}
        if bad := self._watch.see(self._progress.total.completed + 1, means):
            raise self._teachers_fault(bad, batch) or self._not_finite(bad)  # before the weights take it up
        images = len(batch.target)
        self.sums["train"].add(images, {name: mean * images for name, mean in means.items()})
        if self._processes > 1:
            # gradients are averaged over the processes: weighted like this, that is the average over all images
            place = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
            loss = loss * (self._processes * images / self.images(batch, place))
        if torch.is_autocast_enabled(self.device.type):
            with torch.autocast(self.device.type, enabled=False):  # it is for forward passes
                self._descend(loss)
        else:
            self._descend(loss)
        self._schedule.step()
        self._progress.increment_ready()
        self._progress.increment_completed()
        self.teacher.update(self.student)

    def _descend(self, loss: Tensor) -> None:
        optimizer, scaler = self._optimizer, self._scaler
        if self._processes > 1:
            self.manual_backward(loss)  # which tells the processes' reducer that gradients follow
        else:
            (loss if scaler is None else scaler.scale(loss)).backward()
        if self.gradient_clip_val is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(self._trained, self.gradient_clip_val)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()

    def images(self, batch: Any, place: int) -> int:
        """How many images the training batch at a place of the epoch has, in all processes together.

        The batch may be as a loader of others gave it: (image, target) or more, as tensors.
        """
        if self.trainer.world_size == 1:
            return len(batch[1])
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DistillationData), "only such data are shared out"
        return data.images_in_batch(place)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.student(batch.image).logits.float()
        correct = (logits.argmax(1) == batch.target).sum()
        nll = F.cross_entropy(logits, batch.target, reduction="sum")
        self.sums["val"].add(len(batch.target), {"accuracy": correct, "nll": nll})

    def configure_optimizers(self) -> Any:
        self._trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = self.make_optimizer(self._trained)
        refuse_several_losses(optimizer)
        epochs = self.trainer.max_epochs
        assert epochs is not None
        schedule = self.make_schedule(optimizer, self.steps_per_epoch(), epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def steps_per_epoch(self) -> int:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, DistillationData):
            return data.steps_per_epoch()
        epochs = self.trainer.max_epochs
        assert epochs is not None
        return int(self.trainer.estimated_stepping_batches) // epochs

    def setup(self, stage: str) -> None:
        if self.image_shape is not None:  # now: processes that train together lay out their gradients next
            image = torch.zeros(2, *self.image_shape, device=self.device, dtype=next(self.student.parameters()).dtype)
            self.loss.is_channels_last = takes_channels_last(self.student, image)

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)

    def on_fit_end(self) -> None:
        self.student.to(memory_format=torch.contiguous_format)

    def on_train_start(self) -> None:
        """What a step uses, found once: Lightning looks all of it up through many calls."""
        optimizer, schedule = self.trainer.optimizers[0], self.lr_schedulers()
        assert isinstance(schedule, LRScheduler)
        self._optimizer, self._schedule = optimizer, schedule
        self._processes = self.trainer.world_size
        self._scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        self._progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress

    def _teachers_fault(self, bad: Bad, batch: Batch) -> NumericError | None:
        """What to say if it was the teacher, as far as the batch at hand shows it."""
        output = self.teacher(batch)
        if output is None or output.logits.isfinite().all():
            return None
        return NumericError(f"{self.arm}: the teacher's logits are NaN or infinite {self._at(bad)}. {ITS_REMEDY}")

    def _at(self, bad: Bad) -> str:
        epoch, step = divmod(bad.step - 1, self.steps_per_epoch())
        return f"in epoch {epoch + 1}, step {step + 1}"

    def _not_finite(self, bad: Bad) -> NumericError:
        return NumericError(
            f"{self.arm}: {', '.join(bad.terms)} became NaN or infinite {self._at(bad)} "
            f"(learning rate {self._optimizer.param_groups[0]['lr']:.3g}; {self.objective.describe()}). Lower "
            "optim.optimizer.lr, or set trainer.gradient_clip_val."
        )

    def on_train_epoch_start(self) -> None:
        self.sums["train"] = Sums()
        self.seed_epoch()
        self.prepare_epoch()

    def prepare_epoch(self) -> None:
        """Let terms and teacher know the epoch, also when a training goes on in the middle of one."""
        self.objective.begin_epoch(self.current_epoch)
        with self.trainer.precision_plugin.train_step_context():
            self.teacher.begin_epoch(self.current_epoch, channels_last=self.loss.is_channels_last)

    def within_epoch(self) -> dict[str, Any]:
        """The sums of the present epoch so far, for a checkpoint."""
        return {"sums": self.sums["train"].state_dict()}

    def resume_within_epoch(self, state: dict[str, Any]) -> None:
        self.sums["train"] = Sums.from_state(state["sums"], self.device)

    def seed_epoch(self) -> None:
        """Let dropout's draws follow from (seed, epoch) and the process."""
        torch.manual_seed(key_seed(self.seed, self.current_epoch, self.global_rank))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After the last step, before validation: read the epoch's means. Raises `NumericError`."""
        if not self.trainer.is_last_batch:
            return
        means = self.sums["train"].means()
        if bad := self._watch.look():
            raise self._not_finite(bad)
        means["lr"] = self._optimizer.param_groups[0]["lr"]
        self.epoch_means["train"] = means

    def on_train_epoch_end(self) -> None:
        self.teacher.end_epoch()
        self._log("train")

    def on_validation_epoch_start(self) -> None:
        self.sums["val"] = Sums()

    def on_validation_epoch_end(self) -> None:
        self.epoch_means["val"] = self.sums["val"].means()
        self._log("val")

    def _log(self, split: str) -> None:
        """Write the means now: Lightning would after the checkpoint, and a kill in between would lose them."""
        means = {f"{self.arm}/{split}/{name}": value for name, value in self.epoch_means[split].items()}
        for logger in self.loggers:
            logger.log_metrics({**means, "epoch": self.current_epoch}, step=self.global_step - 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if bad := self._watch.look():
            raise self._not_finite(bad)
        if broken := broken_weights(self):
            raise NumericError(
                f"{self.arm}: weights became NaN or infinite in epoch {self.current_epoch + 1} ({broken[0]} and "
                f"{len(broken) - 1} more; {self.objective.describe()}). Lower optim.optimizer.lr, or set "
                "trainer.gradient_clip_val."
            )
        checkpoint["arm"] = self.arm
        checkpoint["teacher"] = self.teacher.state_dict()
        checkpoint["loss"] = self.loss.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.teacher.load_state_dict(checkpoint["teacher"])
        self.loss.load_state_dict(checkpoint["loss"])


class Sums:
    """Sums of per-image values over an epoch, kept on the device: nothing waits for them inside a step."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"totals": {name: value.cpu() for name, value in self.totals.items()}, "count": self.count}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> "Sums":
        sums = cls()
        sums.count = state["count"]
        sums.totals = {name: value.to(device) for name, value in state["totals"].items()}
        return sums

    def add(self, count: int, totals: dict[str, Tensor]) -> None:
        """Add the sums over a batch of `count` images."""
        self.count += count
        for name, value in totals.items():
            self.totals[name] = self.totals[name] + value.float() if name in self.totals else value.float()

    def means(self) -> dict[str, float]:
        """The means over all images so far, those of all processes; reads the device."""
        if processes() == 1:
            return {name: value.item() / self.count for name, value in self.totals.items()}
        count = next(iter(self.totals.values())).new_tensor(self.count, dtype=torch.float64)
        *totals, images = total(torch.stack([*(value.double() for value in self.totals.values()), count])).tolist()
        return {name: value / images for name, value in zip(self.totals, totals, strict=True)}
