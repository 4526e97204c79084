"""`python -m benchmarks.planning [--price PER_HOUR]`: jobs, device hours and cost of whole grids, from images/s.

Measures, on the device that is there, the images per second (of a CPU: per second of one core) of training a teacher
and of distilling a student (the teacher's forward pass, the student's forward and backward pass, the optimiser) for one
pair of networks of each size, on random images, and multiplies it out for the full grid: T x alpha for every method
that has both, T or alpha alone for those that have one, every other method once; all under six seeds; one teacher and
a baseline per seed. Without --price a device hour costs 1. `--json FILE` keeps the measurement.
"""

import argparse
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from kd import method_config
from kd.cli import conf_dir
from kd.losses.configure import build_objective
from kd.taps import Tapped
from kd.teachers import Frozen
from kd.types import Batch

TEMPERATURES, ALPHAS, SEEDS = 5, 3, 6


@dataclass(frozen=True)
class Size:
    """A dataset's size and a pair of networks for it. `epochs` is what the literature trains for."""

    name: str
    images: int
    classes: int
    pixels: int
    teacher: str
    student: str
    epochs: int
    batch: int


SIZES = [
    Size("CIFAR-10", 45_000, 10, 32, "resnet34", "cnn3", 20, 128),  # experiment=cifar_kd
    Size("CIFAR-100", 50_000, 100, 32, "resnet32x4", "resnet8x4", 240, 64),  # the distillation tables (1910.10699)
    Size("ImageNet", 1_281_167, 1000, 224, "resnet34", "resnet18", 100, 32),  # the same tables' large pair
]


def jobs() -> tuple[int, int]:
    """The number of configurations of the full grid, and of jobs under all seeds."""
    configurations = 0
    for path in (conf_dir() / "method").glob("*.yaml"):
        method = method_config(path.stem)
        configurations += (TEMPERATURES if method.get("temperature") is not None else 1) * (
            ALPHAS if method.get("alpha") is not None else 1
        )
    return configurations, configurations * SEEDS


def network(model: str, size: Size) -> nn.Module:
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{model}.yaml"))
    assert isinstance(node, dict)
    node.pop("taps", None)
    facts = {"num_classes": size.classes}
    if "torchvision" not in str(node["_target_"]):
        facts["image_shape"] = (3, size.pixels, size.pixels)
    return instantiate(node, **facts, _convert_="all")


def images_per_s(size: Size, device: torch.device, rounds: int) -> dict[str, float]:
    """Median over rounds, of the teacher's training and of the student's distillation."""
    objective = build_objective(method_config("kd"))
    teacher, student = Tapped(network(size.teacher, size)).to(device), Tapped(network(size.student, size)).to(device)
    frozen = Frozen(Tapped(network(size.teacher, size)))
    frozen.to(device)
    index = torch.arange(size.batch, device=device)
    image = torch.randn(size.batch, 3, size.pixels, size.pixels, device=device)
    batch = Batch(image, index % size.classes, index)

    def distil() -> torch.Tensor:
        return objective(student(batch.image), frozen(batch), batch)[0]

    def train() -> torch.Tensor:
        return nn.functional.cross_entropy(teacher(batch.image).logits.float(), batch.target)

    # one core's own time, whatever else runs on the machine; a GPU's work is not in the process's time
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    found = {}
    for name, loss_of, trained in (("teacher", train, teacher), ("student", distil, student)):
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-4, momentum=0.9)
        seconds = []
        for _ in range(rounds + 1):
            started = clock()
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(clock() - started)
        found[name] = size.batch / statistics.median(seconds[1:])
    return found


def hours(size: Size, speed: dict[str, float], count: int) -> dict[str, float]:
    """Device hours: the teacher's, the baselines' (each at most a student's), one job's, and all jobs'."""
    seen = size.images * size.epochs / 3600
    one = seen / speed["student"]
    return {"teacher": seen / speed["teacher"], "baselines": SEEDS * one, "one job": one, "jobs": count * one}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, default=1.0, help="of one device hour")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"one core of {platform.machine()}"
    configurations, count = jobs()
    print(f"{configurations} configurations x {SEEDS} seeds = {count:,} jobs; {name}, bf16, torch {torch.__version__}")
    print(f"{'':<10} {'pair':<24}{'images/s':>17} {'teacher h':>10} {'one job h':>10} {'all jobs h':>12} {'cost':>12}")
    speeds = {}
    for size in SIZES:
        speeds[size.name] = speed = images_per_s(size, device, given.rounds)
        spent = hours(size, speed, count)
        total = spent["teacher"] + spent["baselines"] + spent["jobs"]
        pair = f"{size.teacher} -> {size.student}"
        measured = f"{size.name:<10} {pair:<24}{speed['teacher']:>8,.0f} {speed['student']:>8,.0f}"
        print(
            f"{measured} {spent['teacher']:>10,.2f} {spent['one job']:>10,.2f} {spent['jobs']:>12,.0f} "
            f"{total * given.price:>12,.0f}"
        )
    if given.json:
        content = {
            "device": name,
            "cores": os.cpu_count(),
            "jobs": count,
            "images_per_s": speeds,
            "sizes": [asdict(s) for s in SIZES],
        }
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
