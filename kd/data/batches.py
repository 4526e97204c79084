"""A user's own DataLoader, for `kd.distill`."""

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor

from kd.errors import ConfigError
from kd.types import Batch


class Batches:
    """A user's DataLoader as `Batch`es; the index is -1 where the loader gives none."""

    def __init__(self, loader: Any, name: str) -> None:
        self.loader = loader
        self.name = name
        if loader is not None and (not hasattr(loader, "__len__") or len(loader) == 0):
            raise ConfigError(f"Expected `{name}` to be a DataLoader with at least one batch, but got {loader!r}.")
        if loader is None and name == "train":
            raise ConfigError("Expected `train` to be a DataLoader, but got None.")

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for parts in self.loader:
            if not isinstance(parts, tuple | list) or len(parts) not in (2, 3):
                raise ConfigError(f"Expected `{self.name}` to give (image, target) or (image, target, index).")
            if not all(isinstance(part, Tensor) for part in parts):
                found = ", ".join(type(part).__name__ for part in parts)
                raise ConfigError(f"Expected `{self.name}` to give tensors, but got {found}.")
            image, target = parts[0], parts[1].long()
            yield Batch(image, target, parts[2] if len(parts) == 3 else torch.full_like(target, -1))

    def transfer_set(self) -> tuple[Tensor, Tensor]:
        batches = [(batch.index, batch.target) for batch in self]
        index, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
        images = getattr(self.loader, "sampler", None)
        if isinstance(images, Sized) and len(images) > len(index):
            raise ConfigError(
                f"This method remembers every image, but the DataLoader gives {len(index)} of {len(images)} images in "
                "an epoch, not always the same: use drop_last=False."
            )
        if (index < 0).any():
            raise ConfigError(
                "This method remembers every image: let the DataLoader give (image, target, index), where index is the "
                "image's place in the dataset."
            )
        return index, target
