"""The store: trained networks, each under the hash of everything that determines its weights.

    <root>/<key>/weights.safetensors   nothing pickled
    <root>/<key>/meta.json             recipe, class names, normalisation, validation metrics, hashes (`kd.entry_files`)
    <root>/<key>/metrics.csv           the curves of its training
    <root>/<key>.lock                  held while it is trained

An entry appears whole or not at all: it is written beside its place and moved there.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kd.entry_files import check_weights, read_meta, sealed
from kd.errors import StoreError
from kd.files import META, METRICS, WEIGHTS, sync_folder, write_bytes, write_json
from kd.locks import SHARED
from kd.weight_files import read_header

#: part of every key; raise it when a change of the code changes the weights that a recipe leads to
RECIPE_VERSION = 1

#: the one name in a file's metadata under which it says what its network expects and answers
DESCRIBED = "kd"

KEY = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """A trained network in the store."""

    key: str
    folder: Path
    meta: dict[str, Any]

    @property
    def metrics_csv(self) -> Path:
        return self.folder / METRICS

    def load_into(self, network: nn.Module) -> None:
        """Fill the network with the entry's weights. Raises `StoreError` if they are damaged or do not fit."""
        try:
            network.load_state_dict(self.weights())
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise StoreError(
                f"{self.folder / WEIGHTS} does not fit {type(network).__name__}, whose code must have changed since: "
                f"{reason} Delete the folder {self.folder}; the network is then trained again."
            ) from error

    def weights(self) -> dict[str, Tensor]:
        """Read the entry's weights. Raises `StoreError` if the file is not the one that was stored."""
        check_weights(self.folder, self.meta)
        return read_weights(self.folder / WEIGHTS)


class Store:
    """Raises `StoreError` when its folder cannot be written."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / f".probe-{os.getpid()}").touch()
            (self.root / f".probe-{os.getpid()}").unlink()
        except OSError as error:
            raise StoreError(
                f"Cannot write to store.root={self.root}: {error.strerror}. Choose another folder."
            ) from error

    def get(self, key: str) -> Entry | None:
        """Return the entry, or None. Raises `StoreError` for one that cannot be read."""
        folder = self._folder(key)
        if not folder.is_dir():
            return None
        return Entry(key, folder, read_meta(folder))

    def put(self, key: str, network: nn.Module, meta: dict[str, Any], metrics_csv: Path | None = None) -> Entry:
        """Write an entry, instead of an earlier one of that key, and return it. A full disk keeps the earlier."""
        folder, temporary = self._folder(key), self.root / f".{key}-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            save_weights(network, temporary / WEIGHTS, meta)
            if metrics_csv is not None and metrics_csv.is_file():
                write_bytes(temporary / METRICS, metrics_csv.read_bytes())
            meta = sealed(temporary, {**meta, "key": key})
            write_json(temporary / META, meta)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if folder.is_dir():  # a folder does not replace one with files in it
            shutil.rmtree(folder)
        temporary.replace(folder)
        sync_folder(self.root)
        return Entry(key, folder, meta)

    def _folder(self, key: str) -> Path:
        """Where an entry is or will be. Raises `StoreError` for a key that could lead out of the store."""
        if not KEY.fullmatch(key):
            raise StoreError(f"{key!r:.80} is no key of the store {self.root}: letters, digits and -_. only.")
        return self.root / key

    @contextmanager
    def lock(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the network's lock; calls `on_wait` once if another process has it. The system frees a dead owner's."""
        lock = FileLock(self.root / f"{key}.lock", mode=SHARED)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def recipe_key(recipe: Any) -> str:
    """Hash a recipe of plain values: 16 hexadecimal digits, the same on every machine."""
    canonical = json.dumps({"version": RECIPE_VERSION, "recipe": recipe}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def save_weights(network: nn.Module, path: Path, meta: dict[str, Any]) -> None:
    """Write a network's state to a safetensors file that also says what the network expects and answers."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    # under one name: the library writes several in another order in every process, and equal networks are equal files
    described = {DESCRIBED: json.dumps({name: meta.get(name) for name in ("class_names", "mean", "std", "model")})}
    write_bytes(path, save(state, metadata=described))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises `StoreError` if it is missing, cut off or no safetensors file."""
    try:
        read_header(path)
        return load_file(path)
    except FileNotFoundError as error:
        raise StoreError(f"There is no file {path}.") from error
    except StoreError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged or no safetensors file: {error}.") from error
