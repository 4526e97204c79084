"""The files of a store entry, sealed: meta.json has the hashes of the others, and one of itself."""

import hashlib
import json
from pathlib import Path
from typing import Any

from kd.errors import StoreError
from kd.files import META, METRICS, WEIGHTS, link_in, sha256
from kd.weight_files import read_header

SEAL = "seal"  # the hash of all else in meta.json
CURVES = "curves_sha256"


def sealed(folder: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """What meta.json is to say of an entry whose other files are in the folder already."""
    content: dict[str, Any] = {**json.loads(json.dumps(meta)), "sha256": sha256(folder / WEIGHTS)}
    if (folder / METRICS).is_file():
        content[CURVES] = sha256(folder / METRICS)
    return {**content, SEAL: _seal(content)}


def read_meta(folder: Path) -> dict[str, Any]:
    """Return what an entry's meta.json says, having compared it and the curves with what was stored.

    An entry of an earlier version has no seal; its weights' hash is all there is. Raises `StoreError`.
    """
    if link := link_in(folder, WEIGHTS, META, METRICS):  # the whole store may be one
        raise _damaged(folder, f"{link}, which nothing in a store is")
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(f"no {WEIGHTS}")
        if not isinstance(meta["sha256"], str):
            raise TypeError(f"its hash of {WEIGHTS} is {meta['sha256']!r:.40}")
        if SEAL in meta and meta[SEAL] != _seal({name: value for name, value in meta.items() if name != SEAL}):
            raise _damaged(folder, f"{META} is damaged: it is not what was stored")
        if CURVES in meta and sha256(folder / METRICS) != meta[CURVES]:
            raise _damaged(folder, f"{METRICS} is damaged: its SHA-256 is not that in {META}")
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, f"it cannot be read ({type(error).__name__}: {str(error)[:100]})") from error
    return meta


def check_weights(folder: Path, meta: dict[str, Any]) -> None:
    """Raise `StoreError` if an entry's weights are not those that were stored."""
    if sha256(folder / WEIGHTS) != meta["sha256"]:
        raise _damaged(folder, f"{WEIGHTS} is damaged: its SHA-256 is not that in {META}")
    read_header(folder / WEIGHTS)


def _damaged(folder: Path, what: str) -> StoreError:
    return StoreError(f"{folder}: {what}. Delete the folder; the network is then trained again.")


def _seal(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
