"""When checkpoints are written, and what one in the middle of an epoch holds beside Lightning's own.

After every epoch, after so many minutes, and before a signal ends the process. The state within an epoch: how many
batches are done, the sums of the metrics so far, and the random generators; in `Save.on_train_start` it is put back.
"""

import time
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from kd import random_state
from kd.checkpoints import Found
from kd.collectives import everyones, loudest
from kd.distiller import Distiller, Sums
from kd.errors import ConfigError
from kd.signals import Signals

AGREE_EVERY = 8  # steps after which several processes ask each other whether to save or to leave


class Continuable(Protocol):
    """A module whose training can go on in the middle of an epoch."""

    @property
    def device(self) -> torch.device: ...

    def prepare_epoch(self) -> None:
        """Let everything know the present epoch."""

    def within_epoch(self) -> dict[str, Any]:
        """What it has summed up and drawn in the present epoch so far."""

    def resume_within_epoch(self, state: dict[str, Any]) -> None:
        """Go on from there."""


class Save(Checkpoint):
    """Writes the checkpoints of a training (`kd.checkpoints` says how).

    A `Checkpoint`, so that Lightning calls it after every other callback has seen the epoch.

    Args:
        path: the file.
        minutes: between two checkpoints within an epoch; None: none but those that a signal asks for.
        signals: that ask the process to end; it does after a checkpoint.
        within_epochs: whether the data can be continued in the middle of an epoch.
        steps_per_call: of the training; the place in an epoch is counted in calls.
    """

    def __init__(
        self, path: Path, minutes: float | None, signals: Signals, *, within_epochs: bool, steps_per_call: int
    ) -> None:
        self.path = path
        self.seconds = float("inf") if minutes is None else 60 * minutes
        self.signals = signals
        self.within_epochs = within_epochs
        self.steps_per_call = steps_per_call
        self._saved = time.monotonic()
        self._restored: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, module: Continuable) -> None:  # type: ignore[override]
        self.signals.watch()
        if trainer.world_size > 1:  # else Lightning's every step would wait for the device, to hear of a signal
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self._saved = time.monotonic()
        if self._restored is not None:
            _put_back(self._restored, trainer, module)
            self._restored = None

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: Continuable, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:  # the epoch's own checkpoint follows, after validation
            return
        asked, due = self.signals.asked, time.monotonic() - self._saved > self.seconds
        if trainer.world_size > 1:
            if trainer.fit_loop.total_batch_idx % AGREE_EVERY:
                return
            asked, due = _agreed(asked, due)
        if (asked or due) and self.within_epochs:
            self._save(trainer)
        if asked:
            self.signals.leave(asked)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._save(trainer)
        asked = self.signals.asked
        if trainer.world_size > 1:
            asked, _ = _agreed(asked, False)
        if asked:
            self.signals.leave(asked)

    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: L.Trainer, module: Continuable, checkpoint: dict[str, Any]
    ) -> None:
        epochs = trainer.fit_loop.epoch_progress.state_dict()["current"]
        if epochs["processed"] < epochs["started"]:
            own = {"module": module.within_epoch(), "random": random_state.captured(module.device)}
            checkpoint["within_epoch"] = {
                "batches": trainer.fit_loop.epoch_loop.batch_progress.current.ready,
                "steps_per_call": self.steps_per_call,
                "processes": everyones(own),
            }

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint.get("within_epoch")

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)  # every process calls it, the first one writes
        self._saved = time.monotonic()


def _put_back(within: dict[str, Any], trainer: L.Trainer, module: Continuable) -> None:
    """Be in the middle of an epoch as the processes were that wrote a checkpoint."""
    module.prepare_epoch()
    processes = within["processes"]
    if len(processes) == trainer.world_size:
        own = processes[trainer.global_rank]
        module.resume_within_epoch(own["module"])
        random_state.restore(own["random"], module.device)
        return
    # another number of processes: not the same bits, but every image counts once, and no two draw the same
    assert isinstance(module, Distiller), "students that train together have one process"
    module.sums["train"] = Sums()
    for one in processes[trainer.global_rank :: trainer.world_size]:
        sums = Sums.from_state(one["module"]["sums"], module.device)
        module.sums["train"].add(sums.count, sums.totals)
    module.seed_epoch()


def _agreed(asked: int, due: bool) -> tuple[int, bool]:
    """The signal that any process has heard, and whether any finds that it is time."""
    loudest_sign, any_due = loudest([asked, int(due)])
    return loudest_sign, bool(any_due)


def refuse_other_calls(found: Found, steps: int) -> None:
    """Raise `ConfigError` if a place within an epoch was counted in other calls than this training's."""
    if found.steps_per_call not in (None, steps):
        raise ConfigError(
            f"{found.path} was written in the middle of an epoch with trainer.steps_per_call={found.steps_per_call}, "
            f"but this run has {steps}. Continue with {found.steps_per_call}, or move the file away."
        )


def checkpoint_size(module: Distiller) -> int:
    """About how many bytes a checkpoint takes: the state twice, for the best epoch's, and two moments of Adam's."""
    teacher = module.teacher.state_dict()
    states = (module.state_dict(), module.state_dict(), teacher, teacher)
    stored = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return sum(value.numel() * value.element_size() for value in [*stored, *trained, *trained])
