"""A user's own LightningDataModule as the data of a run."""

import random
from collections.abc import Iterator, Sized
from typing import Any, Self

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from torch import Tensor

from kd.data.base import DistillationData, View
from kd.data.keyed import key_seed
from kd.errors import ConfigError
from kd.types import Batch


class ForeignData(DistillationData):
    """Wraps any LightningDataModule whose batches are (image, target) or (image, target, index).

    It must have `class_names` (a list) or `num_classes`. Its order and augmentation are its own, seeded at the start of
    each epoch, so that a training continues exactly after a whole epoch, not within one; omission and the keyed views
    of the built-in datasets are not available.
    """

    def __init__(self, module: L.LightningDataModule, config: dict[str, Any]) -> None:
        super().__init__()
        self.module = module
        self.config = config
        self._seed = 0
        self.name = type(module).__name__
        self.mean = getattr(module, "mean", None)
        self.std = getattr(module, "std", None)
        self.omit, self.omit_from = [], []
        classes = getattr(module, "class_names", None)
        if classes is None:
            count = getattr(module, "num_classes", None)
            if not isinstance(count, int):
                raise ConfigError(
                    f"{self.name} needs an attribute `class_names` (a list of str) or `num_classes` (an int), "
                    "so that the networks' last layers can be built."
                )
            classes = [str(label) for label in range(count)]
        self.class_names = [str(name) for name in classes]
        for loader in ("train_dataloader", "test_dataloader"):
            if getattr(type(module), loader) is getattr(L.LightningDataModule, loader):
                raise ConfigError(f"{self.name} needs a `{loader}`.")
        module.prepare_data()
        module.setup("fit")
        module.setup("test")
        _, channels, height, width = self._first().image.shape
        self.image_shape = (channels, height, width)

    def _first(self) -> Batch:
        for batch in self.module.train_dataloader():
            return self.on_device(batch, torch.device("cpu"))
        raise ConfigError(f"{self.name}: the train dataloader is empty.")

    def use(self, view: View) -> Self:
        self._seed = view.seed
        torch.manual_seed(view.seed)
        return self

    def identity(self, view: View) -> dict[str, Any]:
        return {"dataset": self.name, "config": self.config, "augment": view.augment}

    def counts(self) -> dict[str, int]:
        loaders = {
            "train": self.module.train_dataloader(),
            "val": self.val_dataloader(),
            "test": self.test_dataloader(),
        }
        return {split: _images(loader) for split, loader in loaders.items()}

    def train_dataloader(self) -> Any:
        return Seeded(self.module.train_dataloader(), self._seed)

    def val_dataloader(self) -> Any:
        own = type(self.module).val_dataloader is not L.LightningDataModule.val_dataloader
        return self.module.val_dataloader() if own else []

    def test_dataloader(self) -> Any:
        return self.module.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Give a batch our type; -1 stands for an unknown index."""
        batch = self.module.on_after_batch_transfer(batch, dataloader_idx)
        parts = list(batch) if isinstance(batch, tuple | list) else []
        if len(parts) not in (2, 3) or not all(isinstance(part, Tensor) for part in parts) or parts[0].ndim != 4:
            raise ConfigError(f"{self.name} must give batches (image (B, C, H, W), target (B,)[, index (B,)]).")
        image, target = batch[0], batch[1].long()
        return Batch(image, target, batch[2] if len(batch) == 3 else torch.full_like(target, -1))


class Seeded:
    """A user's loader whose every pass begins with random generators that follow from (seed, epoch)."""

    def __init__(self, loader: Any, seed: int) -> None:
        self.loader = loader
        self.seed = seed
        self.epoch = 0
        self.sampler = self  # Lightning looks here for `set_epoch`
        self.batch_sampler = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        _set_sampler_epoch(self.loader, epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        drawn = key_seed(self.seed, self.epoch)
        torch.manual_seed(drawn)
        np.random.seed(drawn)
        random.seed(drawn)
        yield from self.loader


def _images(loader: Any) -> int:
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, Sized):
        return len(dataset)
    return sum(len(batch[1]) for batch in loader)
