"""The two things that travel through a run: a batch of images, and what a network makes of it."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of B images.

    image: float (B, C, H, W), augmented and normalised; uint8 while it is still on its way to the device.
    target: int64 (B,), the hard targets.
    index: int64 (B,), each image's row in the unsplit training (or test) set: the key of its order and augmentation.
    """

    image: Tensor
    target: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which no one needs here


class Output(NamedTuple):
    """What a network returns: logits (B, classes), and the intermediate outputs that were asked for, by name."""

    logits: Tensor
    taps: dict[str, Tensor]
