"""The states of all random generators of a process, in types that a checkpoint may hold."""

import random
from typing import Any

import numpy as np
import torch


def captured(device: torch.device) -> dict[str, Any]:
    """The states of torch's generators (the CPU's and the device's), numpy's and Python's."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    assert kind == "MT19937"
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "device": _of_device(device),
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(words), gauss_next],
    }


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Set all generators back to captured states. A state of another kind of device is left out."""
    torch.set_rng_state(states["torch"].cpu())
    if states["device"] is not None:
        if device.type == "cuda":
            torch.cuda.set_rng_state(states["device"].cpu(), device)
        elif device.type == "mps":
            torch.mps.set_rng_state(states["device"].cpu())
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, gauss_next = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss_next))


def _of_device(device: torch.device) -> torch.Tensor | None:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None
