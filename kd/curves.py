"""metrics.csv: the curves of every arm, one row per logged scalar."""

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from kd.errors import StoreError
from kd.files import write_text

COLUMNS = ("arm", "epoch", "step", "name", "value")


class LabelledLogger(Logger):
    """A Lightning logger of one training, named after it. The configuration is written down elsewhere."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    @property
    def name(self) -> str:
        return self.label

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """A run has config.yaml; a dashboard is told when it is opened."""


class TidyCsv(LabelledLogger):
    """metrics.csv of one training: one row per logged scalar (arm, epoch, step, name, value), flushed at once."""

    def __init__(self, path: Path, label: str) -> None:
        super().__init__(label)
        self.path = path

    def resume(self, epoch: int) -> None:
        """Start the file, or keep of it what was logged before `epoch`."""
        rows = [row for row in read_metrics(self.path) if row["epoch"] and int(row["epoch"]) < epoch]
        write_metrics(self.path, rows)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        epoch = int(metrics.get("epoch", 0))
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            for name, value in metrics.items():
                if name != "epoch":
                    writer.writerow((self.label, epoch, step, name.partition("/")[2], repr(float(value))))


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read a metrics.csv; a file that is not there has no rows, a last line that was cut off is left out.

    Raises `StoreError` for a file that is none.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row.values()]
        if rows and tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"its first line is {reader.fieldnames!r:.200}")
        for row in rows:
            float(row["value"])
            if row["epoch"]:
                int(row["epoch"]), int(row["step"])
    except (ValueError, csv.Error) as error:
        raise StoreError(
            f"{path} is damaged: {error}. Delete it, or the folder that it is in, to start anew."
        ) from error
    return rows


def write_metrics(path: Path, rows: list[dict[str, str]]) -> None:
    """Write a whole metrics.csv, never half of one."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
