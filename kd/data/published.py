"""The field's public datasets, read from their published files, which are checked and never executed."""

import gzip
import math
import pickle
import socket
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets

from kd import checksums
from kd.data.resident import ResidentData
from kd.errors import DataError

DOWNLOAD_TIMEOUT_S = 20.0
LARGEST_IDX = 2**26  # bytes; MNIST's largest file has 47 million


class Published(ResidentData):
    """A public dataset in torchvision's own folder layout, its files checked against their published checksums."""

    files: checksums.Checksums

    def read(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        root = Path(self.root)
        if checksums.missing(root, self.files):
            self._fetch(root)
        checksums.verify(root, self.files)
        return {split: self.arrays(root, split == "train") for split in ("train", "test")}

    @abstractmethod
    def arrays(self, root: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return uint8 images (N, C, H, W) and labels (N,)."""

    def _fetch(self, root: Path) -> None:
        problem, is_new = "", not root.exists()
        try:
            with _socket_timeout(DOWNLOAD_TIMEOUT_S):
                for train in (True, False):
                    getattr(torchvision.datasets, type(self).__name__)(str(root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            problem = " ".join(str(error).split())[:300] or type(error).__name__
        if absent := checksums.missing(root, self.files):
            if is_new:
                _remove_empty(root)  # which torchvision has made: the name may be a mistake
            raise DataError(
                f"{self.name} is not in data.root={self.root} and could not be downloaded"
                f"{f' ({problem})' if problem else ''}. Put these files there, or set data.root (or the environment "
                "variable KD_DATA_DIR) to the folder that has them:\n"
                + "\n".join(f"  {root / name}" for name in absent)
            )


class MNIST(Published):
    """MNIST (LeCun et al. 1998): 60,000 + 10,000 grey images of 28x28."""

    name = "mnist"
    files = checksums.MNIST
    class_names = [str(digit) for digit in range(10)]
    mean = [0.1307]
    std = [0.3081]

    def arrays(self, root: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
        prefix = "train" if train else "t10k"
        images, targets = (
            read_idx(root / next(name for name in self.files if f"{prefix}-{part}" in name))
            for part in ("images", "labels")
        )
        return images[:, None], targets


class FashionMNIST(MNIST):
    """Fashion-MNIST (Xiao et al. 2017, 1708.07747): MNIST's format, read from the archives as published."""

    name = "fashion_mnist"
    files = checksums.FASHION_MNIST
    class_names = torchvision.datasets.FashionMNIST.classes
    mean = [0.2860]
    std = [0.3530]


class CIFAR10(Published):
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32."""

    name = "cifar10"
    files = checksums.CIFAR10
    class_names: list[str] = []  # read with the data
    mean = [0.4914, 0.4822, 0.4465]
    std = [0.2470, 0.2435, 0.2616]

    TRAIN, TEST, META = tuple(f"data_batch_{part}" for part in range(1, 6)), ("test_batch",), "batches.meta"
    LABELS, NAMES = "labels", "label_names"

    def arrays(self, root: Path, train: bool) -> tuple[np.ndarray, np.ndarray]:
        folder = root / Path(next(iter(self.files))).parent
        self.class_names = [str(name) for name in _unpickle(folder / self.META)[self.NAMES]]
        parts = [_unpickle(folder / name) for name in (self.TRAIN if train else self.TEST)]
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        return images, np.concatenate([part[self.LABELS] for part in parts])


class CIFAR100(CIFAR10):
    """CIFAR-100 (Krizhevsky 2009): as CIFAR-10, with 100 classes (the fine labels)."""

    name = "cifar100"
    files = checksums.CIFAR100
    mean = [0.5071, 0.4865, 0.4409]
    std = [0.2673, 0.2564, 0.2762]
    TRAIN, TEST, META = ("train",), ("test",), "meta"
    LABELS, NAMES = "fine_labels", "fine_label_names"


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of numbers, texts and arrays; whatever else a pickle may call is refused."""

    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
        ("numpy", "dtype"), ("_codecs", "encode"),
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[str, Any]:
    """Read a file of CIFAR's, a Python 2 pickle: its checksum may have been remembered from before it was changed."""
    try:
        with path.open("rb") as file:
            content: dict[str, Any] = ArraysOnly(file, encoding="latin1").load()
        return content
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise DataError(f"{path} is not the published file: {error}. Delete it and fetch it again.") from error


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, packed with gzip or not (format: yann.lecun.com/exdb/mnist).

    Two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as big-endian int32, the data.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(LARGEST_IDX + 1)  # a small archive can hold terabytes
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is no gzip archive, or it is cut off: {error}.") from error
    if len(content) > LARGEST_IDX:
        raise DataError(f"{path} holds more than {LARGEST_IDX:,} bytes, which no IDX file of these datasets does.")
    dimensions = content[3] if len(content) > 3 and content[:3] == b"\x00\x00\x08" else 0
    start = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">i4")) if len(content) >= start else ()
    if not shape or len(content) != start + math.prod(shape):
        raise DataError(f"{path} is not an IDX file of unsigned bytes, or it is cut off.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _remove_empty(root: Path) -> None:
    """Remove a folder in which there are only folders."""
    with suppress(OSError):
        for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        root.rmdir()


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """A network that swallows packets must not hang a run for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
