"""Datasets that are small enough to live as uint8 tensors on the training device."""

import hashlib
import math
import sys
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from kd.data.augment import augment as named_augment
from kd.data.images import SPLIT_SEED, ImageData
from kd.data.keyed import WHOLE, Ordered, Share, batches
from kd.data.views import Views
from kd.errors import ConfigError, DataError
from kd.types import Batch

#: what a dataset's own version of changes what a training sees of its images
MAKING_VIEWS = (
    *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer", "_normalise"),
    *("on_device", "train_dataloader", "training_rows", "loader"),
)


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
        for rows in map(self.share.of, batches(self.sampler, self.batch_size, self.images.device)):
            yield Batch(self.images.index_select(0, rows), self.targets.index_select(0, rows), rows)


class ResidentData(ImageData):
    """Image data held in memory; subclasses return their arrays from `read`."""

    _train_sha256: str | None = None

    def load(self) -> None:
        self._streamed: set[str] = set()  # the splits that do not fit on the training device
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
        if self.trainer is not None:
            self._settle(split, self.trainer.strategy.root_device)
        images, targets = self._splits[split]
        return ResidentLoader(images, targets, sampler, batch_size, share)

    def _settle(self, split: str, device: torch.device) -> None:
        """Move a split to the training device, where it stays; if it would fill it, batches are sent one by one."""
        images, targets = self._splits[split]
        if images.device == device or split in self._streamed:
            return
        needed, free = images.nbytes + targets.nbytes, _free_bytes(device)
        if needed > free // 2:
            self._streamed.add(split)
            print(
                f"{self.name}: the {split} images take {needed / 1e6:,.1f} MB, and {device} has {free / 1e6:,.1f} MB "
                "free: they stay in the machine's memory, and every batch is sent to the device"
            )
            return
        self._splits[split] = images.to(device), targets.to(device)

    def views(self) -> Views:
        if "train" in self._streamed:
            raise ConfigError(f"the images of {self.name} do not fit on the training device")
        for name in MAKING_VIEWS:
            if getattr(type(self), name) is not getattr(ResidentData, name):
                raise ConfigError(
                    f"{type(self).__name__} has a `{name}` of its own, so that what a training sees of an image is not "
                    "one of the numbered views of data.augment"
                )
        images, targets = self._splits["train"]
        return Views(images, targets, named_augment(self._view.augment), self._view.seed, self._normalise)

    def train_sha256(self) -> str:
        """The hash of all training images, as they are in memory."""
        if self._train_sha256 is None:
            images = self._splits["train"][0].cpu().contiguous()
            digest = hashlib.sha256(str(tuple(images.shape)).encode())
            digest.update(images.numpy().tobytes())
            self._train_sha256 = digest.hexdigest()
        return self._train_sha256


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


def _free_bytes(device: torch.device) -> int:
    """The free memory of a device that has its own."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else sys.maxsize
