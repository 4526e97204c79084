"""A user's own folder of images, streamed by an ordinary DataLoader under the same keys as the resident datasets."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.datasets
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from kd.check import integer
from kd.data.base import View
from kd.data.images import ImageData
from kd.data.keyed import WHOLE, BatchShares, Ordered, Share
from kd.data.views import Views
from kd.errors import ConfigError, DataError
from kd.types import Batch

LAYOUT = "Expected data.root/train/CLASS/*.png and data.root/test/CLASS/*.png with the same classes"


class ImageFiles(Dataset[Batch]):
    """Decodes one file into a uint8 image (C, size, size): shorter side resized, then centre-cropped."""

    def __init__(self, samples: list[tuple[str, int]], size: int, channels: int) -> None:
        self.samples = samples
        self.size = size
        self.mode = "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Batch:
        file, target = self.samples[row]
        try:
            with Image.open(file) as opened:
                image = opened.convert(self.mode)
        except Exception as error:  # Pillow raises many types on damaged files
            raise DataError(f"{file} cannot be read as an image: {error}. Remove or replace it.") from error
        if image.size != (self.size, self.size):
            scale = self.size / min(image.size)
            image = image.resize(
                (max(self.size, round(image.width * scale)), max(self.size, round(image.height * scale)))
            )
            left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).view(self.size, self.size, -1).permute(2, 0, 1)
        return Batch(pixels, torch.tensor(target), torch.tensor(row))


class DecodingLoader(DataLoader[Batch]):
    """A DataLoader that raises a worker's `DataError` with its own message, not with the worker's traceback in it."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DataError as error:
            raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None


class ImageFolder(ImageData):
    """data.root/train/CLASS/* and data.root/test/CLASS/*; classes are the folder names in alphabetical order.

    Workers only decode; augmentation happens on whole batches on the device, keyed by (seed, epoch, index), so that the
    number of workers does not change what a network sees. Normalised with ImageNet's statistics.
    """

    name = "imagefolder"
    mean: list[float]
    std: list[float]

    def __init__(self, *, image_size: int, channels: int = 3, num_workers: int = 0, **common: Any) -> None:
        self.image_size = integer("data.image_size", image_size, low=1)
        if channels not in (1, 3):
            raise ConfigError(f"Expected `data.channels` to be 1 or 3, but got {channels!r}.")
        self.channels = channels
        self.num_workers = integer("data.num_workers", num_workers)
        super().__init__(**common)

    def load(self) -> None:
        root = Path(self.root)
        splits: dict[str, list[tuple[str, int]]] = {}
        classes: dict[str, list[str]] = {}
        for split in ("train", "test"):
            try:
                found = torchvision.datasets.ImageFolder(str(root / split))
            except (OSError, RuntimeError) as error:
                raise DataError(f"No images in {root / split}: {str(error).splitlines()[0]}. {LAYOUT}.") from error
            splits[split], classes[split] = found.samples, found.classes
        if classes["train"] != classes["test"]:
            different = sorted(set(classes["train"]) ^ set(classes["test"]))
            raise DataError(f"{root}: train and test have different classes ({', '.join(different)}). {LAYOUT}.")
        self.class_names = classes["train"]
        self.image_shape = (self.channels, self.image_size, self.image_size)
        self.mean = [0.449] if self.channels == 1 else [0.485, 0.456, 0.406]
        self.std = [0.226] if self.channels == 1 else [0.229, 0.224, 0.225]
        self._files = {split: ImageFiles(samples, self.image_size, self.channels) for split, samples in splits.items()}
        self.train_targets = torch.tensor([target for _, target in splits["train"]])
        self.test_count = len(splits["test"])
        self._digest = _digest(root, [file for file, _ in splits["train"]])

    def loader(self, sampler: Ordered, split: str, batch_size: int, share: Share = WHOLE) -> DataLoader[Batch]:
        return DecodingLoader(
            self._files[split],
            batch_sampler=BatchShares(sampler, batch_size, share),
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # for the workers' seeds; else each pass would draw one where dropout draws
        )

    def views(self) -> Views:
        raise ConfigError(f"the images of {self.name} are decoded from their files as they come, not kept in memory")

    def identity(self, view: View) -> dict[str, Any]:
        own = {"files": self._digest, "image_size": self.image_size, "channels": self.channels}
        return {**super().identity(view), **own}


def collate(samples: list[Batch]) -> Batch:
    """Stack single images into a `Batch`."""
    image, target, index = zip(*samples, strict=True)
    return Batch(torch.stack(image), torch.stack(target), torch.stack(index))


def _digest(root: Path, files: list[str]) -> str:
    """A hash of the training files' names and contents' sizes and times: changed files mean newly trained networks."""
    digest = hashlib.sha256()
    for file in files:
        stat = Path(file).stat()
        digest.update(f"{Path(file).relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
