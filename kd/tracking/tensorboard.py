"""TensorBoard: event files in the run folder, `tensorboard/<label>`, and the student's settings with its results."""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from kd.tracking import names
from kd.tracking.backend import Run

FOLDER = "tensorboard"


class TensorBoard:
    """The event files of one run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[str, TensorBoardLogger] = {}

    def knows(self, label: str) -> bool:
        return (self.folder / FOLDER / label).is_dir()

    def start(self, run: Run) -> None:
        if self.knows(run.label):  # the new files hold all of it
            shutil.rmtree(self.folder / FOLDER / run.label)
        self.open[run.label] = TensorBoardLogger(self.folder, FOLDER, run.label, default_hp_metric=False)

    def log(self, run: Run, metrics: dict[str, float], step: int) -> None:
        self.open[run.label].log_metrics(metrics, step)

    def finish(self, run: Run, scalars: dict[str, float], result: dict[str, Any]) -> None:
        """Log the final metrics; the student's with its settings, as a row of the HPARAMS table."""
        logger, epochs = self.open[run.label], result["arms"][run.arm]["epochs"] or 0
        if run.arm == names.STUDENT:
            settings = {name: value for name, value in run.columns.items() if value is not None}
            logger.log_hyperparams(settings, names.headlines(scalars), step=epochs)
            scalars = {name: value for name, value in scalars.items() if name not in names.headlines(scalars)}
        logger.log_metrics(scalars, step=epochs)

    def close(self, complete: bool) -> None:
        for logger in self.open.values():
            logger.finalize("success")
        self.open.clear()
