"""What the bits of a teacher's logits follow from."""

import hashlib
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd.data.resident import ResidentData
from kd.data.views import Views
from kd.teachers import Teacher

#: raise it when a change of the code changes the logits that a teacher gives
VERSION = 1


def fingerprint(
    teacher: Teacher,
    models: Sequence[dict[str, Any]],
    data: ResidentData,
    views: Views,
    batch: int,
    layout: torch.memory_format,
) -> dict[str, Any]:
    """Everything that the logits of the views follow from when they are computed here and now, as plain values.

    models: the configurations of the teacher's networks. batch: how many images are computed at once, and
    layout: how they lie in memory.
    """
    image = views.batch(views.entries(torch.zeros(1, dtype=torch.int64), 0)).image
    return {
        "version": VERSION,
        "teacher": type(teacher).__name__,
        "models": list(models),
        "weights": weights_sha256(teacher.networks),
        "images": data.train_sha256(),
        "transform": {"pad": views.augment.pad, "flip": views.augment.flip},
        "normalised": {"mean": data.mean, "std": data.std, "dtype": str(image.dtype)},
        "batch": batch,
        "layout": str(layout),
        "arithmetic": arithmetic(image.device),
    }


def weights_sha256(networks: Sequence[nn.Module]) -> str:
    """The hash of every weight and buffer, in order, with its name, type and shape."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in network.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def arithmetic(device: torch.device) -> dict[str, Any]:
    """What decides how a device rounds."""
    cuda = device.type == "cuda"
    autocast = torch.is_autocast_enabled(device.type)
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "threads": None if cuda else torch.get_num_threads(),
        "autocast": str(torch.get_autocast_dtype(device.type)) if autocast else None,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cudnn.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _processor() -> str:
    """The processor's name and the instructions that torch uses of it."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
