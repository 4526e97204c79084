"""Some test images with what every arm says of them, for a person to look at: examples.json of a run folder."""

import base64
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from kd.data import DistillationData
from kd.files import EXAMPLES, write_json

SCHEMA = 1
DARK, CHANGED = 12, 6  # how many classes the first kind shows, and how many images up and down the second
LARGEST = 96  # pixels of a side; larger images are made smaller


def write(folder: Path, data: DistillationData, logits: dict[str, Tensor], target: Tensor) -> None:
    """Choose images and write them. `logits` has each arm's (N, C) of the test set, target is (N,).

    "dark": of each class, of up to twelve, the image that the teacher gets right with the least
    certainty.
    "changed": those whose true class lost and gained most probability between baseline and student.
    """
    chosen = [("dark", place) for place in _dark(logits.get("teacher"), target)]
    chosen += [("changed", place) for place in _changed(logits["baseline"], logits["student"], target)]
    images = data.test_images([place for _, place in chosen])
    blocks: list[dict[str, Any]] = [
        {
            "index": place,
            "target": int(target[place]),
            "kind": kind,
            "png": _png(image),
            "logits": {arm: [round(value, 5) for value in found[place].tolist()] for arm, found in logits.items()},
        }
        for (kind, place), image in zip(chosen, images, strict=True)
    ]
    write_json(folder / EXAMPLES, {"schema": SCHEMA, "images": blocks})


def _dark(teacher: Tensor | None, target: Tensor) -> list[int]:
    if teacher is None:
        return []
    probabilities = teacher.double().softmax(1)
    right = probabilities.argmax(1) == target
    sure = probabilities.gather(1, target.view(-1, 1)).flatten()
    found = []
    for label in range(min(teacher.shape[1], DARK)):
        places = torch.nonzero(right & (target == label)).flatten()
        if len(places):
            found.append(int(places[sure[places].argmin()]))
    return found


def _changed(baseline: Tensor, student: Tensor, target: Tensor) -> list[int]:
    true = target.view(-1, 1)
    before, after = (logits.double().softmax(1).gather(1, true).flatten() for logits in (baseline, student))
    order = (after - before).argsort(stable=True).tolist()
    return [*order[::-1][:CHANGED], *order[: min(CHANGED, max(0, len(order) - CHANGED))]]


def _png(image: Tensor) -> str:
    """An image (C, H, W) of uint8 as base64; of channels that are neither grey nor colours the first."""
    shown = to_pil_image(image if image.shape[0] in (1, 3) else image[:1])
    shown.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    shown.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
