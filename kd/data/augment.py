"""Augmentation of whole batches on the training device, keyed by (seed, epoch, index)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.check import choice
from kd.data.keyed import below, draws


@dataclass(frozen=True)
class Augment:
    """Shift every image by up to `pad` pixels in each direction over zeros (pad, then crop), and flip it or not."""

    pad: int = 0
    flip: bool = False

    def __call__(self, image: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Return the (B, C, H, W) view of each image that belongs to (seed, epoch, index); any dtype."""
        if not (self.pad or self.flip):
            return image
        draw = draws(seed, epoch, index, 3)
        span = 2 * self.pad + 1
        return view(image, below(draw[:, 0], span), below(draw[:, 1], span), (draw[:, 2] & self.flip).bool(), self.pad)


def view(image: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Crop every image of a batch at its own (top, left) of the zero-padded image, and mirror those with `flip`.

    One gather for the whole batch: all crops are views of one strided tensor, picked by an advanced index.
    image (B, C, H, W); top, left int64 (B,) in [0, 2 pad]; flip bool (B,). Returns (B, C, H, W).
    """
    height, width = image.shape[-2:]
    if pad:
        crops = F.pad(image, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p+1, 2p+1, H, W)
        image = crops[torch.arange(len(image), device=image.device), :, top, left]
    return torch.where(flip.view(-1, 1, 1, 1), image.flip(-1), image)


AUGMENTS = {
    "none": Augment(),
    "shift": Augment(pad=2),  # MNIST "jittered by up to two pixels in each direction" (1503.02531, section 3)
    "crop_flip": Augment(pad=4, flip=True),  # CIFAR's standard (1512.03385, section 4.2)
}


def augment(name: str) -> Augment:
    """Return the augmentation of that name, or raise `ConfigError` with the known ones."""
    return AUGMENTS[choice("augmentation", name, AUGMENTS)]
