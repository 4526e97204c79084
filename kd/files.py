"""A run folder's files: their names, and writing them so that they are whole or not there."""

import errno
import hashlib
import json
import os
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from kd.errors import UserError

RESULT, CONFIG, METRICS, EXAMPLES = "result.json", "config.yaml", "metrics.csv", "examples.json"
PAGE, STUDENT = "report.html", "student.safetensors"
OWN_STORE = "store"  # a folder: the networks of a run, or of a sweep, that was told to train anew
CHECKPOINTS = "checkpoints"  # a folder: what continues a run, or a network of a sweep, that was cut off
FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, or of what a person may have of it
#: of a store entry
WEIGHTS, META = "weights.safetensors", "meta.json"
#: in the store: the folder with teachers' logits, and the files of each
CACHE, LOGITS, ENTRIES = "cache", "logits.bin", "entries.bin"
ENTRY_BYTES = 8  # of entries.bin
#: what a job of a sweep printed; why a run failed
LOG, ERROR = "log.txt", "error.txt"
#: of a sweep: a folder with a file for each task that somebody works on
MARKS = "running"
#: what may differ between two runs of the same experiment without changing what they find
ELSEWHERE = ("store", "logger", "force", "debug", "latency", "join", "sweep")
#: the same of `trainer`: how many processes share the work, in what parts, and when they save it
TRAINER_ELSEWHERE = ("strategy", "num_nodes", "steps_per_call", "checkpoint_minutes")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_in(folder: Path, *names: str) -> str | None:
    """Words for a symbolic link among a folder and these files in it: it could lead to any file of the machine."""
    for path in (folder, *(folder / name for name in names)):
        if path.is_symlink():
            return f"{path.name} is a symbolic link to {path.readlink()}"
    return None


def write_error(folder: Path, error: BaseException) -> str:
    """Leave error.txt in a folder, if there is room, and return its message. The first error of several stays."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    if not (folder / ERROR).exists():
        with suppress(OSError):
            whole = f"{text}\n\n{''.join(traceback.format_exception(error))}"
            write_text(folder / ERROR, whole.encode(errors="backslashreplace").decode())  # a file's name may be no text
    return text


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is never half there."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file that is never half there."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is never half there: beside its place, synced, then moved. On a full disk the old one stays.

    Raises OSError, naming the file, where the system does.
    """
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the system write down which files a folder has: a file moved there is then still there after a power cut."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
