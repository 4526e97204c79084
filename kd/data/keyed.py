"""Order and random draws as pure functions of a key, so that a run does not depend on what was drawn before.

The order of an epoch is a function of (seed, epoch), the draws of an image one of (seed, epoch, index): the same for
any number of workers or devices, and after any interruption.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Sampler

MASK = 0xFFFFFFFF


def mix(value: Tensor) -> Tensor:
    """Hash 32-bit integers held in int64, elementwise, to 32 well-mixed bits.

    The "lowbias32" finaliser (C. Wellons, Prospecting for Hash Functions, 2018). Products wrap modulo 2^64, whose low
    32 bits are exact on every device.
    """
    value = value & MASK
    value = value ^ (value >> 16)
    value = (value * 0x7FEB352D) & MASK
    value = value ^ (value >> 15)
    value = (value * 0x846CA68B) & MASK
    return value ^ (value >> 16)


def draws(seed: int, epoch: int, index: Tensor, count: int) -> Tensor:
    """Return `count` independent 32-bit draws for each image: int64 (B, count) in [0, 2^32), on `index`'s device."""
    return draws_by(epoch_key(seed, epoch), index, count)


def draws_by(key: int | Tensor, index: Tensor, count: int) -> Tensor:
    """Return `draws` from the epoch's key, which as a tensor () does not become part of compiled code."""
    key = mix(mix(index) ^ key)
    return mix(key.unsqueeze(1) + torch.arange(1, count + 1, device=index.device) * 0x9E3779B9)


@lru_cache(maxsize=64)
def epoch_key(seed: int, epoch: int) -> int:
    """Return what all draws of an epoch start from."""
    return int(mix(mix(torch.tensor(seed)) + epoch))  # on the CPU: a tensor sent to a GPU would be waited for


def below(draw: Tensor, limit: int | Tensor) -> Tensor:
    """Map 32-bit draws to integers in [0, limit), uniform up to limit / 2^32; one limit for all, or one for each."""
    return (draw * limit) >> 32


def key_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """One 32-bit seed for everything else that is random in an epoch (the order, dropout) in process `rank`."""
    return int(draws(seed, epoch, torch.tensor([rank]), 1))


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of every batch: rows rank, rank + world, and so on. Alone: all of it."""

    rank: int = 0
    world: int = 1

    def of(self, rows: Tensor) -> Tensor:
        return rows[self.rank :: self.world]


WHOLE = Share()


class KeyedSampler(Sampler[int]):
    """Rows in an order that is a function of (seed, epoch).

    Lightning calls `set_epoch` at the start of every epoch, also after a resume.
    """

    def __init__(self, rows: Tensor, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self.epoch = 0
        self._begun = (0, 0)

    def begin_at(self, epoch: int, batches: int) -> None:
        """Of this one epoch so many batches were trained on before a cut: they do not come again."""
        self.epoch = epoch
        self._begun = (epoch, batches)

    @property
    def done(self) -> int:
        epoch, batches = self._begun
        return batches if epoch == self.epoch else 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self) -> Tensor:
        """The rows of the current epoch, int64, on the CPU."""
        generator = torch.Generator().manual_seed(key_seed(self.seed, self.epoch))
        return self.rows[torch.randperm(len(self.rows), generator=generator)]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())


class Ordered(Protocol):
    """Rows in an order, as samplers here have them; the first `done` batches of it are left out."""

    @property
    def done(self) -> int: ...

    def order(self) -> Tensor: ...

    def __len__(self) -> int: ...


def batches(sampler: Ordered, size: int, device: torch.device | None = None) -> Sequence[Tensor]:
    """The rows of each batch that is still to come, of a sampler's order, moved to a device at once."""
    return torch.split(sampler.order().to(device), size)[sampler.done :]


class BatchShares(Sampler[list[int]]):
    """A process's share of every batch of a sampler's order, for a DataLoader."""

    def __init__(self, sampler: Ordered, batch_size: int, share: Share) -> None:
        self.sampler = sampler  # Lightning looks here for `set_epoch`
        self.batch_size = batch_size
        self.share = share

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in batches(self.sampler, self.batch_size):
            yield self.share.of(rows).tolist()
