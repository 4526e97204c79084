"""What a search chooses from: the swept keys of a command line, as Optuna wants them, and its choices as overrides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString

from kd.errors import ConfigError
from kd.sweep.plan import Axis

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 4  # of a value on a logarithmic scale; on a linear one a thousandth of the interval is told apart


class Dimension(Protocol):
    """One key that is searched. `ends` are the overrides that a configuration must allow, so that it allows all."""

    @property
    def key(self) -> str: ...

    @property
    def ends(self) -> tuple[str, ...]: ...

    @property
    def is_group(self) -> bool: ...

    @property
    def words(self) -> str:
        """What it is chosen from, in Hydra's syntax."""

    def distribution(self) -> "BaseDistribution": ...

    def override(self, value: Any) -> str:
        """What sets the value that Optuna chose."""


@dataclass(frozen=True)
class Listed:
    """Values that are named: `a,b,c`, which have no order, or a range of whole numbers, which has one."""

    axis: Axis
    values: tuple[Any, ...]
    is_range: bool

    @property
    def key(self) -> str:
        return self.axis.key

    @property
    def ends(self) -> tuple[str, ...]:
        return self.axis.overrides

    @property
    def is_group(self) -> bool:
        return self.axis.is_group

    @property
    def words(self) -> str:
        return ",".join(override.partition("=")[2] for override in self.axis.overrides)

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution, IntDistribution

        if self.is_range:
            ordered = sorted(self.values)
            return IntDistribution(ordered[0], ordered[-1], step=ordered[1] - ordered[0])
        return CategoricalDistribution(self.values)

    def override(self, value: Any) -> str:
        return self.axis.overrides[self.values.index(value)]


@dataclass(frozen=True)
class Interval:
    """Every number from `low` to `high`, both included."""

    key: str
    low: float
    high: float
    log: bool

    is_group = False

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int)

    @property
    def ends(self) -> tuple[str, ...]:
        return f"{self.key}={self.low!r}", f"{self.key}={self.high!r}"

    @property
    def words(self) -> str:
        text = f"interval({self.low!r},{self.high!r})"
        text = f"int({text})" if self.is_whole else text
        return f"tag(log,{text})" if self.log else text

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.is_whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def override(self, value: Any) -> str:
        return f"{self.key}={value if self.is_whole else self._readable(value)!r}"

    def _readable(self, value: float) -> float:
        """The value without digits that nobody could tell the effect of."""
        if self.log:
            rounded = float(f"{value:.{DIGITS}g}")
        elif self.low < self.high:
            rounded = round(value, DIGITS - 1 - math.floor(math.log10(self.high - self.low)))
        else:
            rounded = value
        return min(max(rounded, self.low), self.high)


def listed(axis: Axis) -> Listed:
    """A list of values or a range. Raises `ConfigError` for what a search would have to ignore."""
    sweep, line = axis.override.value(), axis.override.input_line
    if tags := getattr(sweep, "tags", None):
        raise ConfigError(
            f"{line}: tag({', '.join(sorted(tags))}, ...) has no meaning for a list of values. What has a logarithmic "
            "scale is an interval: tag(log, interval(1e-4, 1e-1))."
        )
    if getattr(sweep, "shuffle", False):
        raise ConfigError(f"{line}: shuffle has no meaning for a search, which chooses the order itself.")
    parsed = OverridesParser.create().parse_overrides(list(axis.overrides))
    texts = tuple(override.partition("=")[2] for override in axis.overrides)
    values = tuple(_choice(override.value(), text) for override, text in zip(parsed, texts, strict=True))
    if len(set(values)) < len(values):  # 1 and 1.0, say: Optuna would take them for one
        values = texts
    whole = all(type(value) is int for value in values)
    return Listed(axis, values, is_range=axis.override.is_range_sweep() and whole and len(values) > 1)


def interval(override: Override) -> Interval:
    """An interval. Raises `ConfigError` for one that is empty, endless or cannot have a logarithmic scale."""
    sweep, line = override.value(), override.input_line
    assert isinstance(sweep, IntervalSweep) and sweep.start is not None and sweep.end is not None
    key = override.get_key_element()
    if key == "seed":
        raise ConfigError(f"{line}: seeds are not searched. Name those that every trial is run with: seed=0,1,2.")
    if others := sweep.tags - {"log"}:
        raise ConfigError(f"{line}: unknown tag {', '.join(sorted(others))}. Known: log.")
    if not (math.isfinite(sweep.start) and math.isfinite(sweep.end) and sweep.start <= sweep.end):
        raise ConfigError(f"{line}: expected interval(a, b) with finite a <= b, but got {sweep.start} and {sweep.end}.")
    if "log" in sweep.tags and sweep.start <= 0:
        raise ConfigError(f"{line}: a logarithmic scale needs a lower end above 0, but got {sweep.start}.")
    return Interval(key, sweep.start, sweep.end, "log" in sweep.tags)


def _choice(value: Any, text: str) -> Any:
    """A value as Optuna keeps it: numbers stay numbers, everything else is a word."""
    if isinstance(value, QuotedString):
        return value.text
    return value if isinstance(value, bool | int | float | str) else text


def probes(dimensions: Sequence[Dimension]) -> list[tuple[str, ...]]:
    """Overrides that together have every choice of config groups with every value and end of the other dimensions.

    A value is tried beside the first values of the others and beside the last, so that one mistake does not hide
    another.
    """
    found: dict[tuple[str, ...], None] = {}
    groups = [dimension for dimension in dimensions if dimension.is_group]
    choices: list[dict[str, str]] = [{}]
    for group in groups:
        choices = [{**choice, group.key: override} for choice in choices for override in group.ends]
    for chosen in choices:
        for at in (0, -1):
            base = {d.key: chosen.get(d.key, d.ends[at]) for d in dimensions}
            found[tuple(base.values())] = None
            for dimension in dimensions:
                if not dimension.is_group:
                    found |= {tuple({**base, dimension.key: end}.values()): None for end in dimension.ends}
    return list(found)
