"""One training by Lightning: its Trainer, and in words what can end it."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from kd.data import DistillationData
from kd.errors import MachineError, NumericError
from kd.parallel import ProcessLostError, Team, is_broken_connection
from kd.recipe import Recipe
from kd.saving import Save
from kd.schema import TrainerConfig
from kd.strategy import devices


def fit(
    module: L.LightningModule,
    recipe: Recipe,
    data: DistillationData,
    settings: TrainerConfig,
    team: Team,
    *,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    save: Save,
    checkpoint: Path | None,
) -> None:
    """Train as a recipe says, from a checkpoint if there is one.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after a checkpoint.
        NumericError: a term or a weight is not finite.
        MachineError: the memory is full, or a data worker has died.
        ProcessLostError: another process of the run has ended.
    """
    is_validated = data.counts()["val"] and not recipe.is_initial
    trainer = L.Trainer(
        max_epochs=recipe.epochs,
        **devices(settings, team, module, data),
        precision=recipe.precision,  # type: ignore[arg-type]
        deterministic=settings.deterministic,
        logger=list(loggers),
        callbacks=[*callbacks, save],
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        limit_val_batches=None if is_validated else 0,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    try:
        with save.signals.kept():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except NumericError as error:
        kept = f"{save.path} is from before" if save.path.is_file() else "No checkpoint was written yet"
        raise NumericError(f"{error} {kept}.") from error
    except Exception as error:
        _explain(error, data, team)
        raise


def _explain(error: Exception, data: DistillationData, team: Team) -> None:
    """Raise in words what another process or the machine has done; return if it was neither."""
    if team.size > 1 and is_broken_connection(error):
        raise ProcessLostError("Another process of this run has ended. The same command continues the run.") from error
    text = str(error)
    size = getattr(data, "batch_size", "?")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in text:
        raise MachineError(
            f"Out of memory with data.batch_size={size} ({text.splitlines()[0] if text else 'MemoryError'}). Try a "
            "smaller data.batch_size (another recipe), trainer.precision=bf16-mixed, or trainer.steps_per_call=1; "
            "and see what else uses the memory."
        ) from error
    if "DataLoader worker" in text:
        raise MachineError(
            f"A data worker has died ({text.splitlines()[0]}), often because memory ran out. Lower data.num_workers"
            f"={getattr(data, 'num_workers', '?')}, or see why it ended; the same command continues the run."
        ) from error
