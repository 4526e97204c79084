"""`python -m benchmarks.data`: whole-batch crop, flip and normalise against the same per image with PIL.

Both sides run on one thread in one process, in turn, on the same 128 random images. Printed: the median over rounds of
each side's microseconds per image, and the median, minimum and maximum of the ratio round by round.
"""

import platform
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torchvision.transforms import v2

from kd.data.augment import augment

BATCH, ROUNDS = 128, 30
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def batched(images: torch.Tensor) -> Callable[[], object]:
    crop_flip = augment("crop_flip")
    index = torch.arange(BATCH)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return lambda: (crop_flip(images, index, seed=0, epoch=0).float() / 255 - mean) / std


def per_image(images: torch.Tensor) -> Callable[[], object]:
    pictures = [v2.functional.to_pil_image(image) for image in images]
    steps = [
        v2.RandomCrop(32, padding=4),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    transform = v2.Compose(steps)
    return lambda: torch.stack([transform(picture) for picture in pictures])


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    sides = batched(images), per_image(images)
    for work in sides:
        work()
    rounds = [tuple(seconds(work) for work in sides) for _ in range(ROUNDS)]
    ratios = sorted(slow / fast for fast, slow in rounds)
    for name, times in zip(("whole batch", "per image, PIL"), zip(*rounds, strict=True), strict=True):
        print(f"{name:<15} {1e6 * statistics.median(times) / BATCH:8.1f} us/image")
    print(f"ratio           {statistics.median(ratios):8.1f}  (from {ratios[0]:.1f} to {ratios[-1]:.1f})")
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}, "
        f"1 thread, batch {BATCH}, {ROUNDS} rounds"
    )


if __name__ == "__main__":
    main()
