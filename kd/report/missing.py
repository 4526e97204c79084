"""What a sweep's page has no result of: its sweep.json knows jobs that failed, or were not done yet."""

from collections.abc import Iterable
from pathlib import Path

from kd.files import RESULT
from kd.sweep.record import FILE, in_words, read_sweep

SHOWN = 20


def missing(folders: Iterable[Path]) -> list[str]:
    """Jobs without a result, of the sweeps in and below the folders: `temperature=2 seed=0: failed: ...`."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob(FILE)):
            for job in (read_sweep(path.parent) or {}).get("jobs", []):
                if not isinstance(job, dict) or _is_there(path.parent / str(job.get("name")) / RESULT):
                    continue
                error = job.get("error")
                reason = f": {error.get('message')}" if isinstance(error, dict) else ""
                given = job.get("overrides")
                overrides = given if given and isinstance(given, list) else [job.get("name")]
                found[path.parent / str(job.get("name"))] = (
                    f"{in_words(map(str, overrides))}: {job.get('state')}{reason}"
                )
    return list(found.values())


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def shortened(lines: list[str]) -> list[str]:
    """The first lines, and how many there are besides."""
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"and {len(lines) - SHOWN} more"]
