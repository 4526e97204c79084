"""Reads what dashboards have logged back, with their own readers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WANDB = str(Path(sys.executable).parent / "wandb")


def inspect(folder: Path, *options: str) -> str:
    """An offline W&B run, as W&B's own reader prints it."""
    command = [WANDB, "leet", "inspect", "--json", *options, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wandb_records(folder: Path, kind: str) -> list[dict[str, Any]]:
    records = map(json.loads, inspect(folder).splitlines())
    return [record[kind] for record in records if record["type"] == kind]


def wandb_summary(folder: Path) -> dict[str, Any]:
    return json.loads(inspect(folder, "--summary"))


def losses(kind: str, folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, training loss) of every arm that a run folder has logged, in the order of logging."""
    found = {"wandb": _wandb, "trackio": _trackio, "tensorboard": _tensorboard}[kind](folder)
    return {arm: [(step, round(loss, 5)) for step, loss in points] for arm, points in found.items()}


def _wandb(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for run in sorted(folder.glob("wandb/offline-run-*")):
        arm = run.name.rpartition("-")[2]
        for record in wandb_records(run, "history"):
            values = record["item"]
            if f"{arm}/train/loss" in values:
                point = (values["trainer/global_step"], values[f"{arm}/train/loss"])
                found.setdefault(arm, []).append(point)
    return found


def trackio_runs(folder: Path) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The configuration and the logged rows of a run folder's trackio runs, by arm."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    runs = [run for run in trackio.Api().runs("kd") if run.config["folder"] == folder.name]
    return {run.config["arm"]: (run.config, SQLiteStorage.get_logs("kd", run.name, run_id=run.id)) for run in runs}


def _trackio(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return {
        arm: [(row["step"], row[f"{arm}/train/loss"]) for row in rows if f"{arm}/train/loss" in row]
        for arm, (_, rows) in trackio_runs(folder).items()
    }


def _tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    return {
        arm.name: [(event.step, event.value) for event in events(arm).Scalars(f"{arm.name}/train/loss")]
        for arm in sorted(folder.glob("tensorboard/*"))
    }


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return read
