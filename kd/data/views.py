"""The numbered views of a training set: an image and its augmentation under one number, the same in every run."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kd.data.augment import Augment
from kd.types import Batch


@dataclass(frozen=True)
class Views:
    """Every view of every image of a training set. Its number, its `entry`, is row * views + number of the view.

    images: uint8 (N, C, H, W), and targets (N,), of the unsplit training set, on the training device.
    """

    images: Tensor
    targets: Tensor
    augment: Augment
    seed: int
    normalise: Callable[[Tensor], Tensor]

    @property
    def count(self) -> int:
        """How many entries there are."""
        return len(self.images) * self.augment.views

    def entries(self, rows: Tensor, epoch: int) -> Tensor:
        """The entry of the view that an epoch has of each row, int64 (B,), on the images' device."""
        rows = rows.to(self.images.device)
        return rows * self.augment.views + self.augment.numbers(rows, seed=self.seed, epoch=epoch)

    def rows(self, entries: Tensor) -> Tensor:
        return entries // self.augment.views

    def batch(self, entries: Tensor) -> Batch:
        """The views as a training step gets them: augmented, normalised, bit by bit."""
        rows = self.rows(entries)
        image = self.augment.numbered(self.images.index_select(0, rows), entries % self.augment.views)
        return Batch(self.normalise(image), self.targets[rows], rows)

    def raw(self, rows: Tensor) -> Batch:
        """The images as they are before the datamodule augments and normalises them."""
        return Batch(self.images[rows], self.targets[rows], rows)
