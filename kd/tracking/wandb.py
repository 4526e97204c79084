"""Weights & Biases: one run per trained arm, offline where there is no login or no network.

Nothing here waits for a server for longer than `INIT_TIMEOUT_S` at the first arm and `FINISH_TIMEOUT_S` at the end,
whatever it does; what it has not taken lies in the run folder, for `kd.sync`.
"""

import os
import re
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from kd.schema import LoggerConfig
from kd.tracking import names, server
from kd.tracking.backend import Run

FOLDER, COMPLETE = "wandb", "complete"  # `kd.sync` uploads what lies beside the marker
UNSENT = "unsent"  # in the folder of a run that was online, and that the server has not taken whole
INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 15.0, 30.0


class Wandb:
    """The W&B runs of one run folder: they lie in its `wandb/`, whose names tell each label's W&B id."""

    def __init__(self, settings: LoggerConfig, folder: Path, mode: Literal["online", "offline"]) -> None:
        self.settings = settings
        self.folder = folder
        self.mode = mode
        self.open: dict[str, Any] = {}  # W&B runs by label
        self.trouble = ""  # what the user must know of the server, in one line

    def knows(self, label: str) -> bool:
        return bool(self._earlier(label))

    def start(self, run: Run) -> None:
        earlier = self._earlier(run.label)
        for folder in earlier:
            (folder / UNSENT).unlink(missing_ok=True)  # the new log holds all of it
            if folder.name.startswith("offline-"):  # two would overwrite each other
                shutil.rmtree(folder)
        self._marker.unlink(missing_ok=True)
        os.environ.pop("WANDB_SERVICE", None)  # a parent's W&B process would hold the runs of jobs that were killed
        identity = _identity(earlier[0], run.label) if earlier else f"{secrets.token_hex(4)}-{run.label}"
        try:
            opened = self._init(run, identity)
        except Exception as error:  # of many types, all of them a server that does not answer as it should
            if self.mode == "offline":
                raise
            self.mode = "offline"
            self.trouble = f"W&B: the server does not answer ({_first_line(error)}), logging offline"
            for folder in set(self._earlier(run.label)) - set(earlier):  # of the attempt
                shutil.rmtree(folder)
            opened = self._init(run, f"{secrets.token_hex(4)}-{run.label}")  # W&B's process still has the first one
        opened.define_metric(names.GLOBAL_STEP)
        opened.define_metric("*", step_metric=names.GLOBAL_STEP, step_sync=True)
        self.open[run.label] = opened

    def _init(self, run: Run, identity: str) -> Any:
        import wandb

        return wandb.init(
            project=self.settings.project,
            entity=self.settings.entity,
            id=identity,
            resume="allow" if self.mode == "online" else None,
            name=run.name,
            group=run.group,
            job_type=run.arm,
            tags=[*self.settings.tags, *run.tags],
            config=run.content,
            dir=str(self.folder.resolve()),  # W&B's own process may have been started in another folder
            mode=self.mode,
            reinit="create_new",  # the arms' runs are open side by side until their test metrics are known
            settings=_settings(),
        )

    def log(self, run: Run, metrics: dict[str, float], step: int) -> None:
        opened = self.open[run.label]
        if step < opened.starting_step:
            return  # the server has it from before the run was cut off
        ends_epoch = any("/train/" in name for name in metrics)  # validation comes first
        opened.log({**metrics, names.GLOBAL_STEP: step}, step=step, commit=ends_epoch)

    def finish(self, run: Run, scalars: dict[str, float], result: dict[str, Any]) -> None:
        """Log the arm's test metrics and tables. The student's run knows all arms, to compare."""
        opened = self.open[run.label]
        own = {name: value for name, value in scalars.items() if name.startswith(f"{run.arm}/")}
        opened.log({**own, **_tables(run.arm, result["arms"][run.arm]["test"], result["data"]["classes"])})
        opened.summary.update(scalars)

    def close(self, complete: bool) -> None:
        opened, self.open = self.open, {}
        if not opened:
            return
        with ThreadPoolExecutor(len(opened)) as pool:  # they wait for the server beside each other
            unsent = [label for label, sent in zip(opened, pool.map(_finish, opened.values()), strict=True) if not sent]
        if unsent and self.mode == "online":
            for label in unsent:
                (Path(opened[label].dir).parent / UNSENT).touch()
            self.trouble = f"W&B: {server.host()} has not taken all of {', '.join(unsent)}"
        if complete:
            self._marker.touch()

    @property
    def _marker(self) -> Path:
        return self.folder / FOLDER / COMPLETE

    def _earlier(self, label: str) -> list[Path]:
        """The W&B folders of this label's run, of earlier processes too."""
        found = sorted((self.folder / FOLDER).glob("*run-*"))
        return [folder for folder in found if _identity(folder, label)]


def _identity(folder: Path, label: str) -> str:
    """The W&B id in the name of a W&B folder; "" if that belongs to another label."""
    found = re.fullmatch(rf"(?:offline-)?run-\d+_\d+-([0-9a-f]{{8}}-{re.escape(label)})", folder.name)
    return found[1] if found else ""


def _settings() -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        x_disable_stats=True,
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
    )


def _finish(opened: Any) -> bool:
    """Close a W&B run; return whether that went well, which for one online means that the server has all of it."""
    try:
        opened.finish()
    except Exception:  # a timeout; or W&B's own process is gone
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _tables(arm: str, test: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    import wandb

    confusion = [
        [actual, predicted, count]
        for actual, row in zip(classes, test["confusion"], strict=True)
        for predicted, count in zip(classes, row, strict=True)
    ]
    accuracies = [list(row) for row in zip(classes, test["per_class_accuracy"], strict=True)]
    return {
        names.test(arm, "confusion"): wandb.Table(["actual", "predicted", "images"], confusion),
        names.test(arm, "per_class_accuracy"): wandb.Table(["class", "accuracy"], accuracies),
    }
