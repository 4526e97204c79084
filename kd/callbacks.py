"""What happens beside the training loop: keeping the best epoch, saving, measuring speed, showing progress."""

import signal
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kd.distiller import Distiller


class KeepBest(Callback):
    """Keeps the weights of the epoch with the best validation accuracy (of equals, the one with the lower NLL).

    Without a validation set there is nothing to select by, and the last epoch stands.
    """

    def __init__(self) -> None:
        self.best: tuple[float, float] | None = None
        self.epoch: int | None = None
        self.weights: dict[str, Any] = {}

    def on_validation_end(self, trainer: L.Trainer, module: Distiller) -> None:  # type: ignore[override]
        means = module.epoch_means["val"]
        score = (means["accuracy"], -means["nll"])
        if self.best is None or score > self.best:
            self.best, self.epoch = score, trainer.current_epoch
            self.weights = {name: _copy(part.state_dict()) for name, part in _kept(module).items()}

    def restore(self, module: Distiller) -> None:
        """Put the kept weights back. No hook: a training resumed after its last epoch never gets to `on_train_end`."""
        if self.weights:
            for name, part in _kept(module).items():
                part.load_state_dict(self.weights[name])

    def validation(self) -> dict[str, float] | None:
        """The selected epoch's validation metrics; None without a validation set."""
        return None if self.best is None else {"accuracy": self.best[0], "nll": -self.best[1]}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = None if state_dict["best"] is None else tuple(state_dict["best"])
        self.epoch, self.weights = state_dict["epoch"], state_dict["weights"]


class SaveEpoch(Checkpoint):
    """Writes a checkpoint after every epoch, beside its place and then moved there: a kill leaves a whole one.

    A `Checkpoint`, so that Lightning calls it after every other callback has seen the epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        trainer.save_checkpoint(temporary)  # every process calls it, the first one writes
        if trainer.is_global_zero:
            temporary.replace(self.path)


class OwnSignals(Callback):
    """Keeps SIGTERM's handler as it is while several processes train.

    Lightning's would communicate from within the handler; and to hear of it, every step would wait for the device.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)


class Speed(Callback):
    """Measures the images per second of training alone, without validation and logging, and the seconds of it all.

    The images are those of all processes. Both count on where a training that was cut off is continued.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._started = 0.0
        self._before_s = 0.0
        self._fit_started: float | None = None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._fit_started = time.perf_counter()

    def elapsed_s(self) -> float:
        """Seconds from the start of the training, validation included, pauses not."""
        return self._before_s + (time.perf_counter() - self._fit_started if self._fit_started is not None else 0.0)

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: L.Trainer,
        module: Distiller,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.images += module.images(batch, batch_idx)
        if batch_idx + 1 == trainer.num_training_batches:
            if module.device.type == "cuda":
                torch.cuda.synchronize(module.device)
            self.seconds += time.perf_counter() - self._started

    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "images": self.images, "elapsed_s": self.elapsed_s()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]
        self._before_s = state_dict["elapsed_s"]


class ShowProgress(Callback):
    """A bar over the whole training of an arm in a terminal; a plain line per epoch elsewhere."""

    INTERVAL_S = 0.2

    def __init__(self, console: Console, label: str, speed: Speed) -> None:
        self.console = console
        self.label = label
        self.speed = speed
        self.bar: Progress | None = None
        self._shown = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            total = int(trainer.num_training_batches) * int(trainer.max_epochs or 0)
            self.task = self.bar.add_task(self.label, total=total, speed="", completed=trainer.global_step)
            self.bar.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = time.monotonic()
        if self.bar is not None and now - self._shown > self.INTERVAL_S:
            self._shown = now
            epoch = f"{self.label}  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            speed = f"{self.speed.images_per_s():,.0f} images/s" if self.speed.seconds else ""
            self.bar.update(self.task, completed=trainer.global_step, description=epoch, speed=speed)

    def on_train_epoch_end(self, trainer: L.Trainer, module: Distiller) -> None:  # type: ignore[override]
        if self.bar is None:
            means = module.epoch_means
            validation = f"  val accuracy {means['val']['accuracy']:.4f}" if "val" in means else ""
            self.console.print(
                f"{self.label}  epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
                f"  loss {means['train']['loss']:.4f}{validation}  {self.speed.images_per_s():,.0f} images/s",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def _kept(module: Distiller) -> dict[str, Any]:
    """What belongs to the selected epoch: the student, the teacher, and networks delivered beside the student."""
    return {"student": module.student, "teacher": module.teacher, **module.objective.delivered()}


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in state.items()}
