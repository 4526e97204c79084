"""Checks of user-given values, with messages that name the value and what is allowed."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from kd.errors import ConfigError

LONGEST = 100
NAME = re.compile(rf"[^\W_][\w.+-]{{0,{LONGEST - 1}}}")


def number(name: str, value: Any, *, above: float = -math.inf, low: float = -math.inf, high: float = math.inf) -> float:
    """Return `value` as a float, or raise `ConfigError` unless it is a finite number > above and in [low, high]."""
    allowed = f"a number in [{low:g}, {high:g}]"
    if above > -math.inf:
        allowed = f"a number above {above:g}" + (f" and at most {high:g}" if high < math.inf else "")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"Expected `{name}` to be {allowed}, but got {value!r}.")
    if not (value > above and low <= value <= high):
        raise ConfigError(f"Expected `{name}` to be {allowed}, but got {value!r}.")
    return float(value)


def integer(name: str, value: Any, *, low: int = 0, high: float = math.inf) -> int:
    """Return `value` as an int, or raise `ConfigError` unless it is a whole number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        allowed = f"a whole number of at least {low}" if high == math.inf else f"a whole number in [{low}, {high}]"
        raise ConfigError(f"Expected `{name}` to be {allowed}, but got {value!r}.")
    return value


def name(key: str, value: Any) -> str:
    """Return `value`, or raise `ConfigError` unless it can be the name of a file: no path, no hidden file."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ConfigError(
            f"Expected `{key}` to be a name of at most {LONGEST} letters, digits and -_.+ that begins with a letter or "
            f"digit, but got {value!r:.120}."
        )
    return value


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return `value`, or raise `ConfigError` with the nearest and all allowed names."""
    names = sorted(allowed)
    if value not in names:
        raise ConfigError(f"Unknown {name} {value!r}.{nearest(value, names)} Known: {', '.join(names)}.")
    return str(value)


def nearest(value: Any, names: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for the closest of the names, or an empty string."""
    close = difflib.get_close_matches(str(value), list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def hyper_parameters(method: Mapping[str, Any]) -> dict[str, float]:
    """Return those of temperature, alpha and beta that a method sets once for all of its terms.

    Raises `ConfigError` unless temperature > 0 and alpha is in [0, 1]; with beta set both weights are free (>= 0).
    """
    values = {key: method[key] for key in ("temperature", "alpha", "beta") if method.get(key) is not None}
    if "temperature" in values:
        number("method.temperature", values["temperature"], above=0)
    if "beta" in values:
        number("method.beta", values["beta"], low=0)
    if "alpha" in values:
        try:
            number("method.alpha", values["alpha"], low=0, high=math.inf if "beta" in values else 1)
        except ConfigError as error:
            hint = "" if "beta" in values else " For two free weights of at least 0, set `method.beta` too."
            raise ConfigError(f"{error}{hint}") from None
    return values
