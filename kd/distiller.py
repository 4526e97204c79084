"""The one LightningModule: a student, its teacher, an objective. Every arm of a run trains through it."""

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from kd.collectives import processes, total
from kd.data.base import DistillationData
from kd.data.keyed import key_seed
from kd.errors import NumericError
from kd.losses.objective import Objective
from kd.optim import Schedule
from kd.taps import Tapped
from kd.teachers import Teacher
from kd.types import Batch, Output

NOTHING = Output(torch.empty(0), {})  # the student's output where no term looks at it


class Distiller(L.LightningModule):
    """Trains `student` on `objective`. Reversed KD and self-KD differ only in which networks are passed in.

    Without a teacher's term the same module trains a teacher or a baseline. Sums are kept on the device and read once
    per epoch. Raises `NumericError` when a term was not finite in an epoch.
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
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.arm = arm
        self.student = student
        self.objective = objective
        self.teacher = teacher  # no nn.Module: its weights stay out of this module's state
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.seed = seed
        self.epoch_means: dict[str, dict[str, float]] = {}  # of the latest epoch, by split
        self._sums: dict[str, Sums] = {}
        if compiled:
            student.compile()
        teacher.start(student)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        teacher = self.teacher(batch)
        student = self.student(batch.image) if self.objective.needs_student else NOTHING
        loss: Tensor
        loss, terms = self.objective(student, teacher, batch)
        images = len(batch.target)
        self._sums["train"].add(
            images, {name: mean * images for name, mean in {"loss": loss.detach(), **terms}.items()}
        )
        # gradients are averaged over the processes: weighted like this, that is the average over all images
        share = self.trainer.world_size * images / self.images(batch, batch_idx)
        return loss if share == 1 else loss * share

    def images(self, batch: Batch, batch_idx: int) -> int:
        """How many images a training batch has, in all processes together."""
        if self.trainer.world_size == 1:
            return len(batch.target)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, DistillationData), "only such data are shared out"
        return data.images_in_batch(batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.student(batch.image).logits.float()
        correct = (logits.argmax(1) == batch.target).sum()
        nll = F.cross_entropy(logits, batch.target, reduction="sum")
        self._sums["val"].add(len(batch.target), {"accuracy": correct, "nll": nll})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.teacher.update(self.student)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        epochs = self.trainer.max_epochs
        assert epochs is not None
        schedule = self.make_schedule(optimizer, int(self.trainer.estimated_stepping_batches) // epochs, epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        self.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        self._sums["train"] = Sums()
        # dropout's draws follow from (seed, epoch) and the process, so a resumed epoch repeats them
        torch.manual_seed(key_seed(self.seed, self.current_epoch, self.global_rank))
        self.objective.begin_epoch(self.current_epoch)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After the last step, before validation: read the epoch's means. Raises `NumericError`."""
        if not self.trainer.is_last_batch:
            return
        means = self._sums["train"].means()
        if broken := [name for name, value in means.items() if not math.isfinite(value)]:
            raise NumericError(
                f"{self.arm}: {', '.join(broken)} became NaN or infinite in epoch {self.current_epoch + 1} "
                f"({self.objective.describe()}). Lower optim.optimizer.lr, or set trainer.gradient_clip_val."
            )
        means["lr"] = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        self.epoch_means["train"] = means

    def on_train_epoch_end(self) -> None:
        self._log("train")

    def on_validation_epoch_start(self) -> None:
        self._sums["val"] = Sums()

    def on_validation_epoch_end(self) -> None:
        self.epoch_means["val"] = self._sums["val"].means()
        self._log("val")

    def _log(self, split: str) -> None:
        """Write the means now: Lightning would after the checkpoint, and a kill in between would lose them."""
        means = {f"{self.arm}/{split}/{name}": value for name, value in self.epoch_means[split].items()}
        for logger in self.loggers:
            logger.log_metrics({**means, "epoch": self.current_epoch}, step=self.global_step - 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["teacher"] = self.teacher.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.teacher.load_state_dict(checkpoint["teacher"])


class Sums:
    """Sums of per-image values over an epoch, kept on the device: nothing waits for them inside a step."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.count = 0

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
