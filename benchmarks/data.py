"""`python -m benchmarks.data`: whole-batch crop, flip and normalise against the same per image with PIL.

Both sides on the same 128 random images, one step being one batch; how: see `benchmarks.rounds`. PIL's side is the
transform of the peer-style loop, the control a competent script's whole-batch crop.
"""

import torch
from torchvision.transforms.functional import to_pil_image

from benchmarks.pairs import CIFAR, PAIRS, RandomImages
from benchmarks.peers import cropped, transform_of
from benchmarks.rounds import KD, Clock, Table, Work, setting, show
from kd.data.augment import augment

BATCH, ROUNDS, STEPS = 128, 30, 3
MEAN, STD = (torch.tensor(CIFAR[name]).view(-1, 1, 1) for name in ("mean", "std"))


def batched(images: torch.Tensor) -> Work:
    """What a training does to a batch of resident images (`ImageData.on_after_batch_transfer`)."""
    data = RandomImages(PAIRS["rn34_cnn"], BATCH, batch_size=BATCH, val=0)
    crop_flip, index = augment("crop_flip"), torch.arange(BATCH)

    def work(steps: int) -> None:
        for _ in range(steps):
            data._normalise(crop_flip(images, index, seed=0, epoch=0))

    return work


def script(images: torch.Tensor) -> Work:
    def work(steps: int) -> None:
        for _ in range(steps):
            (cropped(images).float() / 255 - MEAN) / STD

    return work


def per_image(images: torch.Tensor) -> Work:
    transform = transform_of(PAIRS["rn34_cnn"])
    pictures = [to_pil_image(image) for image in images]

    def work(steps: int) -> None:
        for _ in range(steps):
            torch.stack([transform(picture) for picture in pictures])

    return work


def measure() -> Table:
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    sides = {KD: batched(images), "per image, PIL": per_image(images), "competent script": script(images)}
    clock = Clock()
    for work in sides.values():
        work(STEPS)
    for _ in range(ROUNDS):
        for name, work in sides.items():
            clock.time(name, work, STEPS)
    found = show(f"crop 4, flip, normalise: batches of {BATCH}", clock, STEPS)
    print(f"  {setting(ROUNDS, STEPS)}")
    return found


def main() -> None:
    torch.set_num_threads(1)
    measure()


if __name__ == "__main__":
    main()
