"""How a term's weight changes over the epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd.check import integer, nearest, number
from kd.errors import ConfigError


@dataclass(frozen=True)
class WeightSchedule:
    """The factor of a term's weight in each epoch, counted from 0; without settings it is 1 throughout.

    start_epoch: 0 before this epoch.
    warmup_epochs: from there it grows linearly, (epoch - start_epoch + 1) / warmup_epochs, until it is 1: the first
        epoch already has its share (as in DKD, Zhao et al. 2022, 2203.08679, section 4.1, over 20 epochs).
    step_epochs, factor: multiplied by `factor` at each of these epochs.
    """

    start_epoch: int = 0
    warmup_epochs: int = 0
    step_epochs: Sequence[int] = ()
    factor: float = 0.1

    def __call__(self, epoch: int) -> float:
        if epoch < self.start_epoch:
            return 0.0
        grown = min((epoch - self.start_epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        return grown * self.factor ** sum(epoch >= step for step in self.step_epochs)

    @property
    def changes(self) -> bool:
        return self != WeightSchedule(factor=self.factor)

    def turns(self) -> list[int]:
        """The epochs at which the factor changes by a step."""
        return [self.start_epoch, *self.step_epochs]

    def describe(self) -> str:
        """Return the schedule in words, e.g. "from epoch 5, warmed up over 20"; empty if the weight is constant."""
        parts = [f"from epoch {self.start_epoch + 1}"] if self.start_epoch else []
        if self.warmup_epochs:
            parts.append(f"warmed up over {self.warmup_epochs} epochs")
        if self.step_epochs:
            epochs = ", ".join(str(step + 1) for step in self.step_epochs)
            parts.append(f"times {self.factor:g} at epoch {epochs}")
        return ", ".join(parts)


def weight_schedule(name: str, node: Any) -> WeightSchedule:
    """Return the schedule that a configuration describes; null gives a constant weight. Raises `ConfigError`."""
    if node is None:
        return WeightSchedule()
    known = list(WeightSchedule.__dataclass_fields__)
    if not isinstance(node, Mapping):
        raise ConfigError(f"Expected `{name}` to set some of {', '.join(known)}, but got {node!r}.")
    for key in node:
        if key not in known:
            raise ConfigError(f"Unknown key `{name}.{key}`.{nearest(key, known)} Known: {', '.join(known)}.")
    given = {key: value for key, value in node.items() if value is not None}
    for key in ("start_epoch", "warmup_epochs"):
        integer(f"{name}.{key}", given.get(key, 0))
    number(f"{name}.factor", given.get("factor", 0.1), low=0)
    steps = given.get("step_epochs", [])
    if not isinstance(steps, list | tuple):
        raise ConfigError(f"Expected `{name}.step_epochs` to be a list of epochs, but got {steps!r}.")
    for step in steps:
        integer(f"{name}.step_epochs", step, low=1)
    return WeightSchedule(**{**given, "step_epochs": tuple(steps)})
