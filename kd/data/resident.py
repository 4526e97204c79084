"""Datasets that are small enough to live as uint8 tensors on the training device."""

import gzip
import math
import pickle
import socket
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from sklearn.datasets import load_digits
from torch import Tensor

from kd.data import checksums
from kd.data.base import SPLIT_SEED, ImageData
from kd.data.keyed import WHOLE, Ordered, Share
from kd.errors import DataError
from kd.types import Batch

DOWNLOAD_TIMEOUT_S = 20.0


class ResidentLoader:
    """Gathers whole batches out of resident tensors; Lightning takes any iterable with a length."""

    def __init__(
        self, images: Tensor, targets: Tensor, sampler: Ordered, batch_size: int, share: Share = WHOLE
    ) -> None:
        self.images = images
        self.targets = targets
        self.sampler = sampler  # Lightning looks here for `set_epoch`
        self.batch_sampler = None  # and here, as it would in a DataLoader
        self.batch_size = batch_size
        self.share = share

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self.sampler.order().to(self.images.device)
        for rows in map(self.share.of, torch.split(order, self.batch_size)):
            yield Batch(self.images[rows], self.targets[rows], rows)


class ResidentData(ImageData):
    """Image data held in memory; subclasses return their arrays from `read`."""

    def load(self) -> None:
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}
        for split, (images, targets) in self.read().items():
            if images.shape[0] != targets.shape[0]:
                raise DataError(f"{self.name}: {images.shape[0]} images but {targets.shape[0]} labels in {split}.")
            self._splits[split] = torch.from_numpy(images), torch.from_numpy(targets).long()
        self.train_targets = self._splits["train"][1]
        self.test_count = len(self._splits["test"][1])
        _, channels, height, width = self._splits["train"][0].shape
        self.image_shape = (channels, height, width)

    @abstractmethod
    def read(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return {"train": (uint8 (N, C, H, W), labels (N,)), "test": ...}."""

    def loader(self, sampler: Ordered, split: str, batch_size: int, share: Share = WHOLE) -> ResidentLoader:
        if self.trainer is not None:  # the tensors move to the training device once, and stay
            device = self.trainer.strategy.root_device
            self._splits[split] = tuple(part.to(device) for part in self._splits[split])  # type: ignore[assignment]
        images, targets = self._splits[split]
        return ResidentLoader(images, targets, sampler, batch_size, share)


class Digits(ResidentData):
    """scikit-learn's handwritten digits: 1,797 real 8x8 images (UCI Optical Recognition of Handwritten Digits).

    The package defines no test set; ours is a fixed random 397 of them.
    """

    name = "digits"
    class_names = [str(digit) for digit in range(10)]
    mean = [0.3055]  # of the training images: measured by tests/data/test_datasets.py
    std = [0.3758]
    TEST = 397

    def read(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        images, targets = load_digits(return_X_y=True)
        images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED)).numpy()
        test, train = order[: self.TEST], order[self.TEST :]
        return {"train": (images[train], targets[train]), "test": (images[test], targets[test])}


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
        problem = ""
        try:
            with _socket_timeout(DOWNLOAD_TIMEOUT_S):
                for train in (True, False):
                    getattr(torchvision.datasets, type(self).__name__)(str(root), train=train, download=True)
        except (OSError, RuntimeError) as error:
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        if absent := checksums.missing(root, self.files):
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


def _unpickle(path: Path) -> dict[str, Any]:
    """Read a file of CIFAR's, a Python 2 pickle. Only for files whose checksum is the published one."""
    with path.open("rb") as file:
        content: dict[str, Any] = pickle.load(file, encoding="latin1")
    return content


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, packed with gzip or not (format: yann.lecun.com/exdb/mnist).

    Two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as big-endian int32, the data.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path} is no gzip archive, or it is cut off: {error}.") from error
    dimensions = content[3] if len(content) > 3 and content[:3] == b"\x00\x00\x08" else 0
    start = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">i4")) if len(content) >= start else ()
    if not shape or len(content) != start + math.prod(shape):
        raise DataError(f"{path} is not an IDX file of unsigned bytes, or it is cut off.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """A network that swallows packets must not hang a run for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
