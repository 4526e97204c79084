"""What a process that was killed leaves half written: files and folders that were to be moved to their place."""

import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from kd.files import CACHE, MARKS
from kd.locks import OWNER, is_locked, is_owned

#: written beside a place and then moved there, by the process of this number: `.result.json-123`, `.0123abcd-123`
TEMPORARY = re.compile(r"\.(?P<place>.+)-(?P<pid>\d+)")
UNFINISHED = ".partial"
STORE_LOCK = ".lock"


def find(outputs: Path, store: Path) -> Iterator[Path]:
    """Every leftover in the outputs and the store whose process is not alive and whose folder nobody works in."""
    for place in filter(Path.is_dir, (store, store / CACHE)):
        yield from (path for path in sorted(place.iterdir()) if _is_dead(path) and not _is_locked(store, path))
    if outputs.is_dir():
        for folder, _, names in os.walk(outputs):
            here = Path(folder)
            if here == store or store in here.parents:
                continue
            dead = [here / name for name in sorted(names) if _is_dead(here / name) or _is_stale(here / name)]
            if dead and not any(is_owned(place) for place in (here, *here.parents) if place != outputs.parent):
                yield from dead


def remove(path: Path) -> None:
    """Remove a leftover, which is never a link's target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def below(folder: Path, name: str) -> Iterator[Path]:
    """Every file of this name in and below a folder."""
    return (Path(place) / name for place, _, names in os.walk(folder) if name in names)


def _is_dead(path: Path) -> bool:
    """Whether a path is named as a leftover is, and no living process has its number."""
    if path.name == OWNER or path.name.endswith(UNFINISHED):
        return True  # of a folder in which nobody works
    found = TEMPORARY.fullmatch(path.name)
    return found is not None and not _is_alive(int(found["pid"]))


def _is_stale(path: Path) -> bool:
    """Whether a file is a sweep's mark that a process of this machine works on a task, which is not alive."""
    if path.parent.name != MARKS or path.suffix != ".json":
        return False
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return bool(owner["host"] == socket.gethostname() and not _is_alive(int(owner["pid"])))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _is_locked(store: Path, path: Path) -> bool:
    """Whether somebody, perhaps on another machine, is training the network that a folder of the store was for."""
    found = TEMPORARY.fullmatch(path.name)
    key = found["place"].partition("-")[0] if found else ""
    return is_locked(store / f"{key}{STORE_LOCK}")
