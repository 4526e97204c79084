"""What every dataset of a distillation run must offer, and the split that all image datasets share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Sampler

from kd.check import integer
from kd.data.augment import augment as named_augment
from kd.data.keyed import WHOLE, KeyedSampler, Ordered, Share
from kd.errors import ConfigError
from kd.types import Batch

SPLIT_SEED = 0  # the validation images are the same in every run
EVALUATION_BATCH = 512


@dataclass(frozen=True)
class View:
    """How one arm sees the data: its order and augmentation, and which classes it never sees."""

    arm: str
    seed: int
    augment: str


class DistillationData(L.LightningDataModule):
    """A LightningDataModule whose batches are `Batch`es, and that knows what a result must say about its data."""

    name: str
    class_names: list[str]
    image_shape: tuple[int, int, int]  # (C, H, W)
    mean: list[float] | None  # of each channel, after scaling to [0, 1]; None: not normalised here
    std: list[float] | None
    augment: str = "none"
    omit: list[int]
    omit_from: list[str]
    omit_bias: float | None = None  # the published correction of the omitted classes' output biases

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @abstractmethod
    def use(self, view: View) -> Self:
        """Serve the batches of one arm from now on."""

    @abstractmethod
    def identity(self, view: View) -> dict[str, Any]:
        """Everything about the data that determines the weights of a network trained on this view."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """The number of images in train, val and test, before omission."""

    def images_in_batch(self, place: int) -> int:
        """How many images the training batch at this place of an epoch has, those of all processes together.

        Raises `ConfigError` for data that several processes cannot share out.
        """
        raise ConfigError(
            f"{self.name} has an order of its own, which several processes cannot share out: trainer=ddp trains on the "
            "built-in datasets and data=imagefolder. Train on one device (trainer.strategy=auto trainer.devices=1)."
        )

    def images_to_validate(self) -> int:
        """How many validation images the present view has."""
        return sum(len(batch[1]) for batch in self.val_dataloader())

    def transfer_set(self) -> tuple[Tensor, Tensor]:
        """The index (N,) and label (N,) of each image of the present view. Raises `ConfigError` if they are unknown."""
        raise ConfigError(f"{self.name} does not number its images, which this method needs to remember each of them.")

    def held_out_dataloader(self) -> Any:
        """All validation images, also of classes that an arm never sees; empty if there are none."""
        return self.val_dataloader()

    def class_shares(self) -> list[float]:
        """The known share of each class (C,), before omission."""
        raise ConfigError(f"{self.name} does not say how often its classes come.")

    def test_images(self, places: Sequence[int]) -> list[Tensor]:
        """Test images as uint8 (C, H, W), by their places in the order of the test set."""
        wanted, found, start = set(places), {}, 0
        for batch in self.test_dataloader():
            image = batch[0]
            for place in sorted(wanted & set(range(start, start + len(image)))):
                found[place] = _as_bytes(image[place - start])
            start += len(image)
        return [found[place] for place in places]

    def on_device(self, batch: Any, device: torch.device) -> Batch:
        """Move, normalise and return a batch outside of a Trainer's loop."""
        moved: Batch = self.on_after_batch_transfer(self.transfer_batch_to_device(batch, device, 0), 0)
        return moved


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
        sampler = KeyedSampler(self._seen(self.train_rows, self._view.arm), self._view.seed)
        if self.trainer is not None:  # workers may fetch before Lightning has told a resumed epoch's number
            sampler.set_epoch(self.trainer.current_epoch)
        return self.loader(sampler, "train", self.batch_size, self._share())

    def images_in_batch(self, place: int) -> int:
        return min(self.batch_size, self._images - place * self.batch_size)

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


def _as_bytes(image: Tensor) -> Tensor:
    """An image (C, H, W) of any scale as uint8, from its darkest to its brightest value."""
    if image.dtype == torch.uint8:
        return image.cpu()
    low, high = image.min(), image.max()
    return ((image.float() - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).cpu()


class InOrder(Sampler[int]):
    """Rows as they are: for validation and test."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def order(self) -> Tensor:
        return self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        return iter(self.rows.tolist())
