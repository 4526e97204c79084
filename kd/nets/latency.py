"""How long a network takes for a batch."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

BATCHES = (1, 256)
BUDGET_S = 1.0  # of one network and batch size, without the first passes
REPEATS = 3, 50  # at least, at most


@torch.no_grad()
def latency(networks: Sequence[nn.Module], image_shape: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Return the median milliseconds of a forward pass of 1 and of 256 blank images, in eval mode, float32.

    Several networks, an ensemble's, run one after the other. On a CPU one thread computes, whatever the run has.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        found: dict[str, Any] = {}
        repeats = []
        for size in BATCHES:
            seconds = _seconds(networks, torch.zeros(size, *image_shape, device=device))
            found[str(size)] = 1000 * median(seconds)
            repeats.append(len(seconds))
        return {**found, "device": _name(device), "threads": torch.get_num_threads(), "repeats": min(repeats)}
    finally:
        torch.set_num_threads(threads)


def _seconds(networks: Sequence[nn.Module], image: torch.Tensor) -> list[float]:
    found: list[float] = []
    while len(found) < 1 + REPEATS[0] or (len(found) < 1 + REPEATS[1] and sum(found[1:]) < BUDGET_S):
        started = time.perf_counter()
        for network in networks:
            network(image)
        if image.device.type == "cuda":
            torch.cuda.synchronize(image.device)
        found.append(time.perf_counter() - started)
    return found[1:]  # the first one warms up


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
