"""The first step at which a term was not finite, found without a device having to be waited for at every step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd.collectives import everyones, processes

LOOK_EVERY = 16  # steps after which a GPU, or several processes, are asked


@dataclass
class Bad:
    """Where it happened, and to what."""

    step: int  # of the training, from 1
    terms: list[str]


class Watch:
    """Sees the terms of every step. On a CPU it knows at once, elsewhere after at most `LOOK_EVERY` steps."""

    def __init__(self) -> None:
        self._is_cheap: bool | None = None  # to ask for a value at every step
        self._unseen: list[tuple[int, list[str], Tensor]] = []  # step, names of the terms, their values (terms,)

    def see(self, step: int, values: dict[str, Tensor]) -> Bad | None:
        """Look at the terms of a step, counted from 1; returns the first bad one as soon as it is known."""
        if self._is_cheap is None:
            self._is_cheap = processes() == 1 and next(iter(values.values())).device.type == "cpu"
        if self._is_cheap:
            if math.isfinite(sum(value.item() for value in values.values())):
                return None
            bad = [name for name, value in values.items() if not math.isfinite(value.item())]
            return Bad(step, bad) if bad else None
        # stacked, that is copied: the next replay of a CUDA graph writes over the values
        copied = torch.stack([value.detach().float() for value in values.values()])
        self._unseen.append((step, list(values), copied))
        return self.look() if step % LOOK_EVERY == 0 else None

    def look(self) -> Bad | None:
        """Ask the device, and the other processes: every process calls this at the same step."""
        own = None
        if self._unseen:
            read = iter(torch.cat([values for _, _, values in self._unseen]).tolist())
            for step, names, _ in self._unseen:
                bad = [name for name in names if not math.isfinite(next(read))]
                own = own or ((step, bad) if bad else None)
            self._unseen = []
        found = [one for one in everyones(own) if one is not None]
        return Bad(*min(found)) if found else None


def broken_weights(network: nn.Module) -> list[str]:
    """The names of the parameters that are not finite; waits for the device, once."""
    parameters = dict(network.named_parameters())
    if not parameters:
        return []
    finite = torch.stack([value.isfinite().all() for value in parameters.values()]).tolist()
    return [name for name, is_finite in zip(parameters, finite, strict=True) if not is_finite]
