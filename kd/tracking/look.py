"""Where a run's dashboard is to be seen, in one line for the user; without Lightning, so that a sweep says it too."""

from pathlib import Path

from kd.schema import LoggerConfig
from kd.tracking import server
from kd.tracking.server import Mode


def where(settings: LoggerConfig, folder: Path, found: tuple[Mode, str] | None = None) -> str:
    """Say where to look, how to upload what ran offline, or what could be had; "" if there is nothing to say.

    `folder` is the run's, or that of its sweep; `found` is what `server.mode` has said, if it was asked before.
    """
    if settings.kind == "csv":
        return ""
    if settings.kind == "tensorboard":
        return f"TensorBoard: tensorboard --logdir {folder}"
    if settings.kind == "trackio":
        from trackio.utils import TRACKIO_DIR

        return f'trackio: trackio show --project "{settings.project}"  (files in {TRACKIO_DIR})'
    mode, hint = found or server.mode(settings)
    if mode == "offline":
        return f"{hint or 'W&B: logging offline'}; {upload(folder)}"
    return hint


def upload(folder: Path) -> str:
    """How to upload what the server does not have."""
    return f"upload with: python -m kd.sync {folder}"
