"""trackio: a dashboard on this machine alone. Its database lies where trackio keeps it, for all runs together."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from kd.errors import ConfigError
from kd.tracking.backend import Run

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Trackio:
    """The trackio runs of one run folder. Raises `ConfigError` where they would leave this machine."""

    def __init__(self, project: str, folder: Path) -> None:
        if remote := [name for name in REMOTE if os.environ.get(name)]:
            raise ConfigError(
                f"logger=trackio logs on this machine only, but {remote[0]}={os.environ[remote[0]]} is set. Unset it; "
                "`trackio sync` uploads a project afterwards."
            )
        from trackio.sqlite_storage import SQLiteStorage

        try:
            SQLiteStorage.validate_project_name(project)
        except ValueError as error:
            raise ConfigError(f"Expected `logger.project` to be a name that trackio accepts: {error}") from error
        self.project = project
        self.folder = folder
        self.current: Any = None  # trackio has one run open at a time, that of the training at work

    def knows(self, label: str) -> bool:
        return bool(self._earlier(label))

    def start(self, run: Run) -> None:
        for earlier in self._earlier(run.label):  # the new run holds all of it
            earlier.delete()
        self._open(run, "never")

    def log(self, run: Run, metrics: dict[str, float], step: int) -> None:
        self.current.log(metrics, step=step)

    def finish(self, run: Run, scalars: dict[str, float], result: dict[str, Any]) -> None:
        self._open(run, "allow").log(scalars)

    def close(self, complete: bool = False) -> None:
        import trackio

        if self.current is not None:
            with _quietly():
                trackio.finish()
            self.current = None

    def _open(self, run: Run, resume: str) -> Any:
        """Open a run, new or again; its configuration is told each time, or trackio would forget it."""
        import trackio

        self.close()
        with _quietly():
            self.current = trackio.init(
                project=self.project,
                name=self._name(run.label),
                group=run.group,
                config=run.content,
                resume=resume,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return self.current

    def _name(self, label: str) -> str:
        """What tells a run from all others of the machine: folders of the same name may lie in several places."""
        place = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:6]
        return f"{self.folder.name}-{label}-{place}"

    def _earlier(self, label: str) -> list[Any]:
        import trackio

        try:
            found = list(trackio.Api().runs(self.project))
        except ValueError:  # no such project yet
            return []
        return [run for run in found if run.name == self._name(label)]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep trackio from printing, and from asking its maker's server for the user's name where a token is stored."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before
