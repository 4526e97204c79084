"""Values out of a JSON object, each checked for its type before anything is shown."""

import math
from typing import Any


def get(block: dict[str, Any], key: str, kind: type) -> Any:
    """Return `block[key]`. An int is a float too, a bool is neither. Raises KeyError or ValueError, also for NaN."""
    value = block[key]
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r:.60}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} is {value}, not a finite number")
    return value


def optional(block: dict[str, Any], key: str, kind: type) -> Any:
    """Return `block[key]`, or None where it is absent or null, as in a result of an older version."""
    return None if block.get(key) is None else get(block, key, kind)


def square(block: dict[str, Any], key: str, classes: int) -> list[list[int]]:
    """Return a confusion matrix of so many classes."""
    rows = get(block, key, list)
    if len(rows) != classes or any(not isinstance(row, list) or len(row) != classes for row in rows):
        raise ValueError(f"the {key} matrix is not square, or not of {classes} classes")
    return [[int(count) for count in row] for row in rows]


def shares(block: dict[str, Any], key: str, classes: int) -> list[float | None]:
    """Return one share per class, None where there is none."""
    values = get(block, key, list)
    if len(values) != classes:
        raise ValueError(f"{key} has {len(values)} values for {classes} classes")
    return [optional({key: value}, key, float) for value in values]
