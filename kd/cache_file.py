"""The file of a teacher cache: rows of logits by entry number, read and filled by any number of processes at once.

    <folder>/meta.json     what the logits follow from, their type, how many entries there can be
    <folder>/logits.bin    the logits of one entry after the other, in the order in which they were found
    <folder>/entries.bin   for each of them the number of its entry, and a hash of both

Logits are written before their number is: what a killed process has left half is not there, and the next one writes
over it. The hash is compared at every reading.
"""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from kd.errors import StoreError
from kd.files import ENTRIES, ENTRY_BYTES, LOGITS, META, link_in, write_json
from kd.locks import LOCK, SHARED

RECORD = np.dtype([("entry", "<u4"), ("hash", "<u4")])
assert RECORD.itemsize == ENTRY_BYTES
FILES = (META, LOGITS, ENTRIES, LOCK)
BITS = {2: "<u2", 4: "<u4", 8: "<u8"}  # how the bytes of a logit are kept: as they are
MIXER = np.uint64(0x9E3779B97F4A7C15)


class CacheFile:
    """Raises `StoreError` for a damaged file, and OSError where the system does (a full disk among others)."""

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder = folder
        self.meta = meta
        self._bits = np.dtype((BITS[meta["itemsize"]], (meta["classes"],)))
        self._place = np.full(meta["entries"], -1, np.int32)  # of each entry's logits in the file
        self._count = 0
        self._logits = np.empty(0, self._bits)
        self._lock = FileLock(folder / LOCK, mode=SHARED)
        with self._lock:
            self._learn()

    @classmethod
    def find(cls, folder: Path, identity: dict[str, Any]) -> Self | None:
        """The file in this folder; None if there is none."""
        if link := link_in(folder, *FILES):
            raise StoreError(f"{folder}: {link}, which nothing in a teacher cache is. {_remedy(folder)}")
        if not folder.is_dir():
            return None
        try:
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            if meta["identity"] != identity:
                raise ValueError(f"{META} describes another teacher")
            return cls(folder, meta)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"The teacher cache {folder} cannot be read ({error}). {_remedy(folder)}") from error

    @classmethod
    def create(cls, folder: Path, meta: dict[str, Any]) -> Self:
        """Make an empty file; or take the one that another process has made meanwhile."""
        temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}-{os.getpid()}")
        temporary.mkdir(parents=True)
        try:
            write_json(temporary / META, meta)
            for name in (LOGITS, ENTRIES):
                (temporary / name).touch()
            temporary.rename(folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            found = cls.find(folder, meta["identity"])
            if found is None:
                raise
            return found
        return cls(folder, meta)

    def __len__(self) -> int:
        """How many entries are filled, as of the latest reading or writing."""
        return self._count

    @property
    def entry_bytes(self) -> int:
        """What one entry takes on the disk."""
        return self._bits.itemsize + RECORD.itemsize

    def read(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bits of the logits of these entries (n, C), and which of them (n,) are there.

        Raises `StoreError` naming the entry if what is there is not what was written.
        """
        with self._lock:
            self._learn()
        place = self._place[entries]
        there = place >= 0
        bits = np.zeros(len(entries), self._bits)
        bits[there] = self._logits[place[there]]
        kept = np.memmap(self.folder / ENTRIES, RECORD, "r", shape=self._count)["hash"] if there.any() else place
        wrong = hashes(entries[there], bits[there]) != kept[place[there]]
        if wrong.any():
            self._refuse(f"the logits of entry {entries[there][wrong][0]} are not those that were written")
        return bits, there

    def write(self, entries: np.ndarray, bits: np.ndarray) -> None:
        """Add entries, each given once; those that are there already are left as they are."""
        with self._lock:
            self._learn()
            new = self._place[entries] < 0
            record = np.empty(int(new.sum()), RECORD)
            record["entry"], record["hash"] = entries[new], hashes(entries[new], bits[new])
            _append(self.folder / LOGITS, self._count * self._bits.itemsize, bits[new].tobytes())
            _append(self.folder / ENTRIES, self._count * RECORD.itemsize, record.tobytes())
            self._learn()

    def _learn(self) -> None:
        """Take in what has been added since, by whatever process."""
        path = self.folder / ENTRIES
        count = path.stat().st_size // RECORD.itemsize
        if count < self._count:
            self._refuse(f"{ENTRIES} has become shorter while it was in use")
        if (size := (self.folder / LOGITS).stat().st_size) < count * self._bits.itemsize:
            self._refuse(f"{LOGITS} has {size:,} bytes, expected at least {count * self._bits.itemsize:,}")
        if count == self._count:
            return
        added = np.fromfile(path, RECORD, count - self._count, offset=self._count * RECORD.itemsize)["entry"]
        if (added >= len(self._place)).any():
            self._refuse(f"{ENTRIES} names entry {added.max():,} of {len(self._place):,}")
        self._place[added] = np.arange(self._count, count)
        self._logits = np.memmap(self.folder / LOGITS, self._bits.base, "r", shape=(count, *self._bits.shape))
        self._count = count

    def _refuse(self, what: str) -> None:
        raise StoreError(f"The teacher cache {self.folder} is damaged: {what}. {_remedy(self.folder)}")


def to_bits(logits: Tensor) -> np.ndarray:
    """The bytes of logits (n, C), of whatever type and on whatever device, as unsigned integers."""
    same_size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[logits.element_size()]
    bits: np.ndarray = logits.contiguous().view(same_size).cpu().numpy()
    return bits.view(BITS[logits.element_size()])


def from_bits(bits: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The logits (n, C) that these are the bytes of."""
    return torch.from_numpy(bits.view(f"<i{bits.itemsize}")).view(dtype)


def hashes(entries: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """A 32-bit hash of each entry's number and logits, uint32 (n,)."""
    found = (entries.astype(np.uint64) + np.uint64(1)) * MIXER
    for column in bits.T:
        found = ((found ^ (found >> np.uint64(29))) ^ column.astype(np.uint64)) * MIXER
    return (found >> np.uint64(32)).astype(np.uint32)


def _append(path: Path, at: int, content: bytes) -> None:
    """Write from a place on, over what a killed process or a full disk has left half behind it."""
    with path.open("r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(content)
        file.flush()


def _remedy(folder: Path) -> str:
    return f"Delete the folder {folder}; it is filled again. Or set teacher.cache=off."
