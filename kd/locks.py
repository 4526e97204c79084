"""Locks on folders: who works in one is known, and a dead owner's lock is free at once."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd.errors import UserError

LOCK, OWNER = ".lock", ".owner.json"
SHARED = 0o666  # the mode of lock files, which hold nothing: whoever may enter the folder may lock it
LOOK_S = 0.5  # somebody may only be looking whether the folder is in use


class BusyError(UserError):
    """Another process works in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(
            f"{folder} is in use by {described(read_owner(folder))}. Wait for it, or give another folder with "
            "hydra.run.dir."
        )


def owner() -> dict[str, Any]:
    """This process, in words that another one can show."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def described(owner: dict[str, Any]) -> str:
    """`process 123 on host, since ...`."""
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Work in a folder alone. Raises `BusyError` if another process does. The system frees a dead owner's lock."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, mode=SHARED)
    try:
        lock.acquire(timeout=LOOK_S)
    except Timeout:
        raise BusyError(folder) from None
    try:
        (folder / OWNER).write_text(json.dumps(owner()), encoding="utf-8")
        yield
    finally:
        (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def is_owned(folder: Path) -> bool:
    """Whether a living process works in the folder."""
    return is_locked(folder / LOCK)


def is_locked(file: Path) -> bool:
    """Whether a living process, perhaps on another machine, holds a lock file."""
    if not file.exists():
        return False
    lock = FileLock(file, mode=SHARED)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def read_owner(folder: Path) -> dict[str, Any]:
    """Who works, or last worked, in a folder; {} if that is not known."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}
