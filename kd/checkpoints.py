"""Checkpoint files: written so that they are whole or not there, checked before they are read, the last two kept.

<name>.ckpt             what torch.save writes, and at its end the SHA-256 of all before it
<name>.previous.ckpt    the one before
<name>.damaged-1.ckpt   a file that is not what was written: kept for its owner, never read again
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from kd.errors import StoreError
from kd.files import FULL, sync_folder
from kd.weight_files import check_torch_file

MARK = b"\nkd-sha256 "
TRAILER = len(MARK) + 64 + 1  # the mark, 64 hexadecimal digits, a line's end
AT_ONCE = 3  # files of one training while the next checkpoint is written
MARGIN = 2**20  # bytes beside them: curves, logs


@dataclass(frozen=True)
class Found:
    """A whole checkpoint: after so many epochs, and so many batches of the one that follows."""

    path: Path
    digest: str  # SHA-256
    epochs: int
    batches: int = 0
    steps_per_call: int | None = None  # in which the batches are counted

    def describe(self, epochs: int) -> str:
        """Where the training goes on: `epoch 3 of 20`, `epoch 3 of 20 and 17 steps`."""
        steps = self.batches * (self.steps_per_call or 1)
        return f"epoch {self.epochs} of {epochs}" + (f" and {steps} steps" if steps else "")


def find(path: Path, say: Callable[[str], None]) -> Found | None:
    """The newest whole checkpoint of a training; None if there is none. Damaged files are moved aside, saying so.

    Raises `StoreError` for a whole file that this version cannot read.
    """
    for candidate in (path, previous(path)):
        if not candidate.is_file():
            continue
        if (problem := damage(candidate)) is None:
            return read_position(candidate)
        aside = _unused(path)
        candidate.replace(aside)
        earlier = candidate == path and previous(path).is_file()
        go_on = "trying the one before it" if earlier else "starting anew"
        say(f"the checkpoint {candidate} is damaged ({problem}); moved to {aside.name}, {go_on}")
    return None


def holding(path: Path, digest: str) -> Found | None:
    """The whole checkpoint of a training that has this SHA-256; None if it is not, or not yet, to be seen here."""
    for candidate in (path, previous(path)):
        if candidate.is_file() and damage(candidate) is None and (found := read_position(candidate)).digest == digest:
            return found
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes; None if they are those that were written."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return "it is empty"
        if size <= TRAILER or not _at_end(file, size).startswith(MARK):
            return "it is cut off: the SHA-256 at its end is missing"
        return None if _digest(file, size - TRAILER) == _at_end(file, size)[len(MARK) : -1] else "its SHA-256 is wrong"


def read_position(path: Path) -> Found:
    """Where a whole checkpoint was written. It may be another's: it is held against its size before torch reads it."""
    try:
        check_torch_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        within = content.get("within_epoch")
        batches, calls = (within["batches"], within["steps_per_call"]) if within else (0, None)
        epochs = int(content["epoch"]) + (0 if within else 1)
    except Exception as error:  # what another version has written fails in as many ways as it differs
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreError(
            f"{path} is whole, but this version cannot read it ({reason}). Move it away to start anew."
        ) from error
    with path.open("rb") as file:
        digest = _at_end(file, os.fstat(file.fileno()).st_size)[len(MARK) : -1].decode()
    return Found(path, digest, epochs, batches, calls)


def begun(path: Path) -> bool:
    """Whether a training has left a checkpoint, whole or not."""
    return path.is_file() or previous(path).is_file()


def previous(path: Path) -> Path:
    return path.with_suffix(f".previous{path.suffix}")


def remove(path: Path) -> None:
    """Remove a training's checkpoints, when its network is stored; damaged ones stay."""
    for one in (path, previous(path)):
        one.unlink(missing_ok=True)


class CheckedIO(CheckpointIO):
    """Lightning's way to our files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside the place, sync, keep the present file as the previous one, and move the new one there.

        Raises `StoreError` if the disk is full; the files from before are then as they were.
        """
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.partial")  # one process at a time writes here
        try:
            with temporary.open("wb") as file:
                hashed = _Hashed(file)
                try:
                    torch.save(checkpoint, hashed)  # type: ignore[arg-type]
                except RuntimeError:
                    if hashed.error is not None:  # torch tells of its own confusion, not of the cause
                        raise hashed.error from None
                    raise
                file.write(MARK + hashed.hash.hexdigest().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno not in FULL:
                raise
            raise StoreError(
                f"The disk of {place.parent} is full: no checkpoint could be written. The earlier ones are whole. "
                "Make space; the same command then continues the run."
            ) from error
        if place.is_file():
            place.replace(previous(place))
        temporary.replace(place)
        sync_folder(place.parent)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = True) -> Any:
        """Read a file that `find` has checked; nothing in it is executed."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        remove(Path(path))


def refuse_full_disk(folder: Path, size: int) -> None:
    """Raise `StoreError` if a folder's disk has no room for the checkpoints, of `size` bytes each, of a training."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = AT_ONCE * size + MARGIN, shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"Not enough space for checkpoints in {folder}: {free / 1e6:,.1f} MB are free, {needed / 1e6:,.1f} MB are "
            f"needed ({AT_ONCE} files of about {size / 1e6:,.1f} MB, and some for curves). Make space there, or choose "
            "another folder with hydra.run.dir."
        )


class _Hashed:
    """A file that hashes what is written to it, and remembers why it could not be."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def _at_end(file: IO[bytes], size: int) -> bytes:
    file.seek(size - TRAILER)
    return file.read()


def _digest(file: IO[bytes], length: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(0)
    while length and (block := file.read(min(length, 2**20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def _unused(path: Path) -> Path:
    """The first free name for a damaged file of a training."""
    number = next(n for n in range(1, 10**6) if not path.with_suffix(f".damaged-{n}{path.suffix}").exists())
    return path.with_suffix(f".damaged-{number}{path.suffix}")
