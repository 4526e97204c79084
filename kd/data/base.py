"""What every dataset of a distillation run must offer."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import lightning as L
import torch
from torch import Tensor

from kd.data.views import Views
from kd.errors import ConfigError
from kd.types import Batch


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

    steps_per_call: int = 1  # how many steps' images a training batch holds

    def group_steps(self, steps: int) -> None:
        """Let a training batch hold the images of several steps (`trainer.steps_per_call`).

        Raises `ConfigError` for data that cannot.
        """
        if steps > 1:
            raise ConfigError(
                f"trainer.steps_per_call={steps}: {self.name} makes its own batches, which cannot be put together. "
                "Use trainer.steps_per_call=1."
            )

    def images_per_step(self) -> int | None:
        """How many images of a training batch belong to one step; None: all of them."""
        return None

    def steps_per_epoch(self) -> int:
        """The number of optimisation steps in an epoch of the present view."""
        return len(self.train_dataloader())

    def images_to_validate(self) -> int:
        """How many validation images the present view has."""
        return sum(len(batch[1]) for batch in self.val_dataloader())

    def transfer_set(self) -> tuple[Tensor, Tensor]:
        """The index (N,) and label (N,) of each image of the present view. Raises `ConfigError` if they are unknown."""
        raise ConfigError(f"{self.name} does not number its images, which this method needs to remember each of them.")

    def views(self) -> Views:
        """The numbered views of the training images. Raises `ConfigError` if nothing but the data knows its views."""
        raise ConfigError(f"{self.name} has an order and a transform of its own, whose views have no numbers")

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
        batch = self.transfer_batch_to_device(self.on_before_batch_transfer(batch, 0), device, 0)
        moved: Batch = self.on_after_batch_transfer(batch, 0)
        return moved


def _as_bytes(image: Tensor) -> Tensor:
    """An image (C, H, W) of any scale as uint8, from its darkest to its brightest value."""
    if image.dtype == torch.uint8:
        return image.cpu()
    low, high = image.min(), image.max()
    return ((image.float() - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).cpu()
