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

    @property
    def views(self) -> int:
        """How many different views an image has."""
        return (2 * self.pad + 1) ** 2 * (1 + self.flip)

    def __call__(self, image: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Return the (B, C, H, W) view of each image that belongs to (seed, epoch, index); any dtype."""
        if self.views == 1:
            return image
        return view(image, *self._drawn(index, seed, epoch), self.pad)

    def numbers(self, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Return the number of the view, int64 (B,) in [0, views), that `__call__` makes of each image."""
        if self.views == 1:
            return torch.zeros_like(index)
        top, left, flip = self._drawn(index, seed, epoch)
        return (top * (2 * self.pad + 1) + left) * (1 + self.flip) + flip

    def numbered(self, image: Tensor, number: Tensor) -> Tensor:
        """Return the view of each image that has this number, int64 (B,): the same bits as `__call__` makes."""
        if self.views == 1:
            return image
        place, flip = number // (1 + self.flip), number % (1 + self.flip)
        span = 2 * self.pad + 1
        return view(image, place // span, place % span, flip.bool(), self.pad)

    def _drawn(self, index: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The top and left of each image's crop, and whether it is mirrored."""
        draw = draws(seed, epoch, index, 3)
        span = 2 * self.pad + 1
        return below(draw[:, 0], span), below(draw[:, 1], span), (draw[:, 2] & self.flip).bool()


def view(image: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Crop every image of a batch at its own (top, left) of the zero-padded image, and mirror those with `flip`.

    In memory a crop is one run of the padded image, from its first pixel to its last, with pixels in between that the
    strides of the result leave out. So all crops are copied by one `index_select` of runs, out of the images and their
    mirror images. image (B, C, H, W); top, left int64 (B,) in [0, 2 pad]; flip bool (B,). Returns (B, C, H, W).
    """
    count, channels, height, width = image.shape
    padded = F.pad(torch.stack((image, image.flip(-1))), (pad,) * 4)
    rows, columns = padded.shape[-2:]
    run = ((channels - 1) * rows + height - 1) * columns + width
    runs = padded.flatten().as_strided((padded.numel() - run + 1, run), (1, 1))
    first = (flip * count + torch.arange(count, device=image.device)) * (channels * rows * columns)
    chosen = runs.index_select(0, first + top * columns + torch.where(flip, 2 * pad - left, left))
    return chosen.as_strided(image.shape, (run, rows * columns, columns, 1))


AUGMENTS = {
    "none": Augment(),
    "shift": Augment(pad=2),  # MNIST "jittered by up to two pixels in each direction" (1503.02531, section 3)
    "crop_flip": Augment(pad=4, flip=True),  # CIFAR's standard (1512.03385, section 4.2)
}


def augment(name: str) -> Augment:
    """Return the augmentation of that name, or raise `ConfigError` with the known ones."""
    return AUGMENTS[choice("augmentation", name, AUGMENTS)]
