"""What kd is measured against: the loop that the field's scripts have, and a competent script as a control.

Both are written here from their description: *peer*, PIL transforms on every image, a DataLoader, an eager float32
teacher, an optimiser without fusion, `loss.item()` and top-1 and top-5 accuracy at every step; *control*, uint8 images
resident on the device, whole batches gathered and augmented there, bfloat16 where kd's side has it, channels last, a
fused optimiser, and no waiting for the device.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.pairs import Pair, random_images
from benchmarks.rounds import Work

TEMPERATURE, ALPHA = 4.0, 0.9
IMAGES = 4096  # more than a round needs


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def kd_objective(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    soft = F.kl_div(F.log_softmax(student / TEMPERATURE, 1), F.softmax(teacher / TEMPERATURE, 1), reduction="batchmean")
    return (1 - ALPHA) * F.cross_entropy(student, target) + ALPHA * TEMPERATURE**2 * soft


def optimizer(pair: Pair, student: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """Of the kind that the pair's experiment has."""
    if pair.experiment == "cifar_resnet":
        return torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=fused)
    return torch.optim.Adam(student.parameters(), 1e-3, fused=fused)


def transform_of(pair: Pair) -> transforms.Compose:
    """What such scripts do to a picture: on CIFAR crop and flip, and everywhere normalise."""
    crop_flip = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    steps = [*(crop_flip if pair.image_shape[0] == 3 else []), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(pair.mean, pair.std)])


class PictureSet(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's datasets give them: one by one, through PIL and a transform."""

    def __init__(self, pair: Pair) -> None:
        arrays, self.labels = random_images(pair, IMAGES)
        self.pictures = arrays.transpose(0, 2, 3, 1).squeeze()
        self.transform = transform_of(pair)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pictures[row])), int(self.labels[row])


class Meter:
    """A running mean, as such scripts keep one."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        self.total, self.count = self.total + value * count, self.count + count


def top_k(logits: Tensor, target: Tensor, ks: tuple[int, ...] = (1, 5)) -> list[float]:
    _, best = logits.topk(max(ks), 1)
    hits = best.t().eq(target.view(1, -1))
    return [100.0 * hits[:k].reshape(-1).float().sum().item() / len(target) for k in ks]


def peer(pair: Pair, teacher: nn.Module, student: nn.Module, batch: int) -> Work:
    """Return what does so many steps of the peer-style loop."""
    where = device()
    teacher.eval().to(where)
    student.train().to(where)
    descent = optimizer(pair, student, fused=False)
    batches = endless(DataLoader(PictureSet(pair), batch_size=batch, shuffle=True, drop_last=True))
    meters = [Meter() for _ in range(3)]

    def work(steps: int) -> None:
        for _ in range(steps):
            image, target = (part.to(where) for part in next(batches))
            with torch.no_grad():
                soft = teacher(image)
            logits = student(image)
            loss = kd_objective(logits, soft, target)
            descent.zero_grad()
            loss.backward()
            descent.step()
            for meter, value in zip(meters, (loss.item(), *top_k(logits, target)), strict=True):
                meter.update(value, len(target))

    return work


def endless(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def control(pair: Pair, teacher: nn.Module | None, student: nn.Module, batch: int, precision: str) -> Work:
    """Return what does so many steps of a competent script; without a teacher it looks its logits up in a table.

    `precision`: of kd's side, for whoever writes such a script knows what the machine is fast in.
    """
    where = device()
    images, labels = (torch.from_numpy(part).to(where) for part in random_images(pair, IMAGES))
    laid_out = torch.channels_last if pair.image_shape[0] == 3 else torch.contiguous_format
    student.train().to(where, memory_format=laid_out)
    if teacher is not None:
        teacher.eval().requires_grad_(False).to(where, memory_format=laid_out)
    table = torch.randn(IMAGES, 10, device=where)
    descent = optimizer(pair, student, fused=True)
    mean, std = (torch.tensor(part, device=where).view(-1, 1, 1) for part in (pair.mean, pair.std))
    crop = cropped if pair.image_shape[0] == 3 else lambda image: image

    def work(steps: int) -> None:
        for _ in range(steps):
            rows = torch.randint(IMAGES, (batch,), device=where)
            image = (crop(images[rows]).float() / 255 - mean) / std
            image = image.contiguous(memory_format=laid_out)
            with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                with torch.no_grad():
                    soft = table[rows] if teacher is None else teacher(image)
                logits = student(image)
            loss = kd_objective(logits.float(), soft.float(), labels[rows])
            descent.zero_grad()
            loss.backward()
            descent.step()

    return work


def cropped(image: Tensor) -> Tensor:
    """Random crops of the batch, padded by 4, of which half are mirrored: one gather."""
    count, _, height, width = image.shape
    padded = F.pad(image, (4, 4, 4, 4))
    top, left = torch.randint(9, (2, count, 1, 1), device=image.device)
    rows = top + torch.arange(height, device=image.device).view(1, -1, 1)
    columns = left + torch.arange(width, device=image.device).view(1, 1, -1)
    columns = torch.where(torch.rand(count, 1, 1, device=image.device) < 0.5, columns.flip(-1), columns)
    every = torch.arange(count, device=image.device).view(-1, 1, 1)
    return padded[every, :, rows, columns].movedim(-1, 1)
