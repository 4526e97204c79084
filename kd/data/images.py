"""Datasets of uint8 images: how all of them are split, limited, shared out, augmented and normalised."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Sampler

from kd.check import integer
from kd.data.augment import augment as named_augment
from kd.data.base import DistillationData, View
from kd.data.keyed import WHOLE, KeyedSampler, Ordered, Share
from kd.errors import ConfigError
from kd.types import Batch

SPLIT_SEED = 0  # the validation images are the same in every run
EVALUATION_BATCH = 512


class ImageData(DistillationData):
    """uint8 images with a training and a test set; validation is split from the training set with a fixed seed.

    Subclasses load their data in `load` (once) and set `train_targets` and `test_count` there.
    """

    def __init__(
        self,
        root: str,
        batch_size: int,
        val: int | float,
        augment: str = "none",
        train_limit: int | None = None,
        test_limit: int | None = None,
        omit: list[int] | None = None,
        keep: list[int] | None = None,
        omit_from: list[str] | None = None,
        omit_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.root = root
        self.batch_size = integer("data.batch_size", batch_size, low=1)
        self.augment = augment
        named_augment(augment)
        self.val = val
        self.train_limit = train_limit
        self.test_limit = test_limit
        self.load()
        self.omit = self._omitted([] if omit is None else omit, [] if keep is None else keep)
        self.omit_from = ["baseline", "student"] if omit_from is None else list(omit_from)
        self.omit_bias = omit_bias
        self._split()
        for arm in self.omit_from:  # refuse now what would leave an arm without images
            self._seen(self.train_rows, arm)
            self._seen(self.val_rows, arm)
        self.use(View("student", 0, augment))
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std

    train_targets: Tensor  # int64 (N,), of the whole training set
    test_count: int

    @abstractmethod
    def load(self) -> None:
        """Read the data, or raise `DataError`; sets class_names, image_shape, mean, std, train_targets, test_count."""

    @abstractmethod
    def loader(self, sampler: Ordered, split: str, batch_size: int, share: Share = WHOLE) -> Any:
        """An iterable with a length over the uint8 `Batch`es of the rows that the sampler gives, or a share of each."""

    # --- splits ---------------------------------------------------------------------------------------------------

    def _split(self) -> None:
        total = len(self.train_targets)
        if isinstance(self.val, float) and not 0 <= self.val < 1:
            raise ConfigError(f"Expected `data.val` to be a number of images or a share in [0, 1), but got {self.val}.")
        whole = round(self.val * total) if isinstance(self.val, float) else self.val
        count = integer("data.val", whole, high=total - 1)
        shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(SPLIT_SEED))
        self.val_rows, self.train_rows = shuffled[:count], shuffled[count:]
        if self.train_limit is not None:
            limit = integer("data.train_limit", self.train_limit, low=1, high=len(self.train_rows))
            self.train_rows = self.train_rows[:limit]
        limit = self.test_count if self.test_limit is None else self.test_limit
        self.test_rows = torch.arange(integer("data.test_limit", limit, low=1, high=self.test_count))

    def _omitted(self, omit: Sequence[int], keep: Sequence[int]) -> list[int]:
        """The sorted classes to leave out, from either way of naming them."""
        for name, classes in (("omit", omit), ("keep", keep)):
            if not isinstance(classes, Sequence):
                raise ConfigError(f"Expected `data.{name}` to be a list of classes such as [3], but got {classes!r}.")
            for label in classes:
                if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < self.num_classes:
                    some = ", ".join(self.class_names[:10]) + (", ..." if self.num_classes > 10 else "")
                    raise ConfigError(
                        f"`data.{name}` names class {label!r}, but {self.name} has the classes "
                        f"0 to {self.num_classes - 1} ({some})."
                    )
        omitted = sorted(set(range(self.num_classes)) - set(keep)) if keep else sorted(set(omit))
        if len(omitted) == self.num_classes:
            raise ConfigError(f"`data.omit={omit}` leaves no class to learn from; {self.name} has {self.num_classes}.")
        return omitted

    def _seen(self, rows: Tensor, arm: str) -> Tensor:
        """The rows without the classes that this arm never sees."""
        if not self.omit or arm not in self.omit_from:
            return rows
        kept = rows[~torch.isin(self.train_targets[rows], torch.tensor(self.omit))]
        if len(rows) and not len(kept):
            raise ConfigError(f"No image is left once the classes {self.omit} are omitted from {len(rows)} images.")
        return kept

    def transfer_set(self) -> tuple[Tensor, Tensor]:
        rows = self._seen(self.train_rows, self._view.arm)
        return rows, self.train_targets[rows]

    def counts(self) -> dict[str, int]:
        return {"train": len(self.train_rows), "val": len(self.val_rows), "test": len(self.test_rows)}

    # --- one arm's view -------------------------------------------------------------------------------------------

    def use(self, view: View) -> Self:
        self._view = view
        self._begun = (0, 0)
        self._images = len(self._seen(self.train_rows, view.arm))
        return self

    def identity(self, view: View) -> dict[str, Any]:
        omitted = self.omit if view.arm in self.omit_from else []
        return {
            "dataset": self.name,
            "val": len(self.val_rows),
            "train": len(self.train_rows),
            "images": len(self._seen(self.train_rows, view.arm)),
            "omit": omitted,
            "augment": view.augment,
            "batch_size": self.batch_size,
        }

    def train_dataloader(self) -> Any:
        sampler = self._sampler()
        sampler.begin_at(*self._begun)
        if self.trainer is not None:  # workers may fetch before Lightning has told a resumed epoch's number
            sampler.set_epoch(max(self.trainer.current_epoch, self._begun[0]))
        return self.loader(sampler, "train", self.batch_size * self.steps_per_call, self._share())

    def group_steps(self, steps: int) -> None:
        self.steps_per_call = steps

    def images_per_step(self) -> int | None:
        return self.batch_size if self.steps_per_call > 1 else None

    def steps_per_epoch(self) -> int:
        return math.ceil(self._images / self.batch_size)

    def begin_at(self, epoch: int, batches: int) -> None:
        """Let the present view's training begin in this epoch, after so many of its batches."""
        self._begun = (epoch, batches)

    def training_rows(self, epoch: int) -> list[Tensor]:
        """The rows of each batch of an epoch, int64, or of this process's share of it."""
        sampler = self._sampler()
        sampler.set_epoch(epoch)
        return [self._share().of(rows) for rows in torch.split(sampler.order(), self.batch_size)]

    def _sampler(self) -> KeyedSampler:
        return KeyedSampler(self._seen(self.train_rows, self._view.arm), self._view.seed)

    def images_in_batch(self, place: int) -> int:
        size = self.batch_size * self.steps_per_call
        return min(size, self._images - place * size)

    def images_to_validate(self) -> int:
        return len(self._seen(self.val_rows, self._view.arm))

    def _share(self) -> Share:
        """This process's share while it trains together with others."""
        return WHOLE if self.trainer is None else Share(self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> Any:
        rows = self._share().of(self._seen(self.val_rows, self._view.arm))
        return self.loader(InOrder(rows), "train", EVALUATION_BATCH) if len(rows) else []

    def test_dataloader(self) -> Any:
        return self.loader(InOrder(self.test_rows), "test", EVALUATION_BATCH)

    def held_out_dataloader(self) -> Any:
        return self.loader(InOrder(self.val_rows), "train", EVALUATION_BATCH) if len(self.val_rows) else []

    def class_shares(self) -> list[float]:
        """The shares in training and validation images together."""
        labels = self.train_targets[torch.cat([self.train_rows, self.val_rows])]
        shares: list[float] = (torch.bincount(labels, minlength=self.num_classes) / len(labels)).tolist()
        return shares

    def test_images(self, places: Sequence[int]) -> list[Tensor]:
        if not places:
            return []
        batch = next(iter(self.loader(InOrder(self.test_rows[list(places)]), "test", len(places))))
        return list(batch.image.cpu())

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return Batch(*(part.to(device, non_blocking=True) for part in batch))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment (while training) and normalise a uint8 batch on the device it has arrived on."""
        image = batch.image
        if self.trainer is not None and self.trainer.training:
            apply = named_augment(self._view.augment)
            image = apply(image, batch.index, seed=self._view.seed, epoch=self.trainer.current_epoch)
        return batch._replace(image=self._normalise(image))

    def _normalise(self, image: Tensor) -> Tensor:
        if self._scale.device != image.device:
            self._scale, self._shift = self._scale.to(image.device), self._shift.to(image.device)
        return image.float().mul_(self._scale).add_(self._shift)  # (x / 255 - mean) / std


class InOrder(Sampler[int]):
    """Rows as they are: for validation and test."""

    done = 0

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def order(self) -> Tensor:
        return self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        return iter(self.rows.tolist())
