"""Teachers: they own eval mode and no_grad, and never receive a gradient.

A `Teacher` is deliberately no `nn.Module`, so that its weights cannot slip into the student's parameters, optimiser or
checkpoint.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from kd.check import number
from kd.errors import ConfigError
from kd.frozen import for_inference, takes_channels_last
from kd.losses.virtual import virtual_teacher_logits
from kd.nets.quantized import MovingRange
from kd.seals import Seals
from kd.taps import Tapped
from kd.types import Batch, Output

Module = TypeVar("Module", bound=nn.Module)

#: what to do about a teacher whose logits are NaN or infinite
ITS_REMEDY = (
    "It is the teacher, not the student: try trainer.precision=32-true, or another teacher (its own learning rate may "
    "have been too large, or the file of its weights is a broken one)."
)


class Teacher(ABC):
    """Gives the soft targets of a batch."""

    #: the networks whose forward passes the soft targets cost
    networks: Sequence[nn.Module] = ()
    #: whether it learns while it teaches
    learns = False

    def __call__(self, batch: Batch) -> Output | None:
        """The teacher's output for a batch, without gradient; None if there is no teacher."""
        with torch.no_grad():
            return self.output(batch)

    @abstractmethod
    def output(self, batch: Batch) -> Output | None: ...

    def single(self) -> nn.Module | None:
        """The one network that the soft targets come from; None if there is none, or if there are several."""
        return None

    def to(self, device: torch.device) -> Self:
        for network in self.networks:
            network.to(device)
        return self

    def hurry(self, image: Tensor) -> bool:
        """Called at the start of a training with its first images: get ready to do the same for many.

        Returns whether they may be laid out as (B, H, W, C) in memory.
        """
        return all(takes_channels_last(network, image[:2]) for network in self.networks)

    @cached_property
    def seals(self) -> Seals:
        return Seals()

    def seal(self) -> None:
        """Take the fingerprints of the networks that must not change from now on."""
        if not self.learns:
            self.seals.take(self.networks)

    def start(self, student: Tapped) -> None:
        """Called once with the student as it is before its first step."""

    def update(self, student: Tapped) -> None:
        """Called after every optimiser step of the student."""

    def begin_epoch(self, epoch: int, *, channels_last: bool) -> None:
        """Called before the first step of every epoch, counted from 0, in the precision of the steps.

        channels_last: whether the student lets images be laid out as (B, H, W, C) in memory.
        """

    def end_epoch(self) -> None:
        """Called after the last step of every epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beyond the student; empty for a teacher that does not change."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class NoTeacher(Teacher):
    """For arms that learn from hard targets alone."""

    def output(self, batch: Batch) -> None:
        return None


class Frozen(Teacher):
    """A trained network, in eval mode for good: its batch-norm statistics do not drift."""

    def __init__(self, network: Tapped) -> None:
        self.network = freeze(network)
        self.networks = (self.network,)
        self._fast: Tapped | None = None

    def hurry(self, image: Tensor) -> bool:
        if self.network.names:
            return super().hurry(image)
        self._fast = for_inference(self.network, image[:2])
        self.seals.take([self._fast])
        return takes_channels_last(self._fast, image[:2])

    def single(self) -> nn.Module:
        return self.network.network

    def output(self, batch: Batch) -> Output:
        network = self._fast or self.network
        assert not network.training, "a frozen teacher must stay in eval mode"
        result: Output = network(batch.image)
        return result


class Ensemble(Teacher):
    """Several trained networks; the logits are the log of their averaged probabilities (1503.02531, section 1).

    A method then tempers these averaged probabilities: softmax(log p / T).
    """

    def __init__(self, members: Sequence[Tapped]) -> None:
        self.networks: tuple[Tapped, ...] = tuple(freeze(member) for member in members)
        self._fast: tuple[Tapped, ...] = ()

    def hurry(self, image: Tensor) -> bool:
        self._fast = tuple(for_inference(member, image[:2]) for member in self.networks)
        self.seals.take(self._fast)
        return all(takes_channels_last(member, image[:2]) for member in self._fast)

    def output(self, batch: Batch) -> Output:
        members = self._fast or self.networks
        log_probabilities = [torch.log_softmax(member(batch.image).logits.float(), 1) for member in members]
        stacked = torch.stack(log_probabilities)
        return Output(torch.logsumexp(stacked, 0) - math.log(len(stacked)), {})


class Ema(Teacher):
    """The exponential moving average of the student's weights and batch-norm statistics (1703.01780, equation 1)."""

    learns = True

    def __init__(self, decay: float) -> None:
        self.decay = number("teacher.decay", decay, low=0, high=1)
        self.average: Tapped | None = None

    def start(self, student: Tapped) -> None:
        """Begin with a copy of the student; again, into the same network, which others may hold by now.

        Raises `ConfigError` for a quantised student: the average of its ranges lags far behind that of its weights.
        """
        if any(isinstance(module, MovingRange) for module in student.modules()):
            raise ConfigError(
                "teacher=ema cannot average a quantised network: its ranges would start at nothing. Choose another "
                "teacher, or a network without kd.nets.quantized."
            )
        if self.average is None:
            self.average = freeze(copy.deepcopy(student))
            self.networks = (self.average,)
        with torch.no_grad():
            for own, theirs in self._pairs(student):
                own.copy_(theirs)

    def output(self, batch: Batch) -> Output:
        assert self.average is not None, "Ema.start comes before the first batch"
        result: Output = self.average(batch.image)
        return result

    @torch.no_grad()
    def update(self, student: Tapped) -> None:
        """Move to the student by `1 - decay`; counts likewise, rounded down. Masks stay: pruning looks at the weights.

        Not torch's `AveragedModel`: that sends its count of updates to the device at every step, and waits for it.
        """
        pairs = list(self._pairs(student))
        own, theirs = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(own, theirs, 1 - self.decay)
        for count, other in pairs:
            if not count.is_floating_point() and count.dtype != torch.bool:
                count.copy_(count * self.decay + other * (1 - self.decay))

    def _pairs(self, student: Tapped) -> Iterator[tuple[Tensor, Tensor]]:
        """The parameters and buffers of the average, each with the student's."""
        assert self.average is not None
        yield from zip(self.average.parameters(), student.parameters(), strict=True)
        yield from zip(self.average.buffers(), student.buffers(), strict=True)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.average is not None
        self.average.load_state_dict(state)

    def single(self) -> nn.Module:
        """The averaged network itself."""
        assert self.average is not None
        return self.average.network


class Virtual(Teacher):
    """No network: `correct_probability` on the label, the rest spread evenly (Tf-KD, 1909.11723, equation 9)."""

    def __init__(self, num_classes: int, correct_probability: float) -> None:
        self.num_classes = num_classes
        self.correct_probability = correct_probability
        label = torch.zeros(1, dtype=torch.int64)
        self.output(Batch(label, label, label))  # raises now if the probability is out of range

    def output(self, batch: Batch) -> Output:
        logits = virtual_teacher_logits(
            batch.target, num_classes=self.num_classes, correct_probability=self.correct_probability
        )
        return Output(logits, {})


def freeze(network: Module) -> Module:
    """Put a network into eval mode and take its gradients away."""
    return network.eval().requires_grad_(False)
