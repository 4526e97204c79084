"""What happens beside the training loop: keeping the best epoch, measuring speed, showing progress."""

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from kd.chance import near_chance, standard_error
from kd.distiller import Distiller

HOT = 8.0  # a temperature whose square is a likely cause


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


class Speed(Callback):
    """Measures the images per second of training alone, without validation and logging, and the seconds of it all.

    The images are those of all processes. Both count on where a training that was cut off is continued.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._started: float | None = None  # of the present epoch's part in this process
        self._before_s = 0.0
        self._fit_started: float | None = None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._fit_started = time.perf_counter()

    def elapsed_s(self) -> float:
        """Seconds from the start of the training, validation included, pauses not."""
        return self._before_s + (time.perf_counter() - self._fit_started if self._fit_started is not None else 0.0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._started = time.perf_counter()  # for an epoch that is continued: it does not start again

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
        # not `batch_idx`: it starts at 0 again where an epoch is continued
        self.images += module.images(batch, trainer.fit_loop.epoch_loop.batch_idx)
        if trainer.is_last_batch:
            if module.device.type == "cuda":
                torch.cuda.synchronize(module.device)
            self.seconds, self._started = self._seconds_so_far(), None

    def images_per_s(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds_so_far(), "images": self.images, "elapsed_s": self.elapsed_s()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]
        self._before_s = state_dict["elapsed_s"]

    def _seconds_so_far(self) -> float:
        return self.seconds + (time.perf_counter() - self._started if self._started is not None else 0.0)


class WarnAtChance(Callback):
    """Says once that a network classifies no better than by guessing after an epoch, and the likely cause.

    Where the images are so few that even guesses often look like knowledge, nothing is said. Such a network is finite,
    so nothing stops it; a temperature of 20 with a weight of 1 and a learning rate of 0.1 has
    been seen to leave one dead.
    """

    def __init__(self, say: Callable[[str], None], chance: float, images: int) -> None:
        self.say, self.chance, self.images = say, chance, images
        self.can_tell = standard_error(images, self.chance) <= self.chance
        self.told = False

    def state_dict(self) -> dict[str, Any]:
        return {"told": self.told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.told = state_dict["told"]

    def on_validation_end(self, trainer: L.Trainer, module: Distiller) -> None:  # type: ignore[override]
        accuracy = module.epoch_means["val"]["accuracy"]
        if self.told or not (self.can_tell and near_chance(accuracy, self.images, self.chance, errors=2)):
            return
        self.told = True
        rate = module.epoch_means["train"]["lr"]
        hot = max(float(getattr(term, "temperature", 1.0)) for term in module.objective.terms.values())
        cause = "the learning rate may be too large or too small"
        if hot >= HOT:
            cause = f"T^2 = {hot**2:g} times the soft targets' gradient may be too large a step: lower one of the two"
        self.say(
            f"warning: validation accuracy {accuracy:.1%} after epoch {trainer.current_epoch + 1}, where guessing has "
            f"{self.chance:.1%}. The learning rate is now {rate:.3g}; {cause}."
        )


class ShowProgress(Callback):
    """A bar over the whole training of an arm in a terminal; a plain line per epoch elsewhere."""

    INTERVAL_S = 0.2

    def __init__(self, console: Console, label: str, speed: Speed) -> None:
        self.console = console
        self.label = label
        self.speed = speed
        self.bar: Progress | None = None
        self._shown = 0.0

    def on_train_start(self, trainer: L.Trainer, module: Distiller) -> None:  # type: ignore[override]
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            total = module.steps_per_epoch() * int(trainer.max_epochs or 0)
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
