"""Checks of what every network is given: the image's shape, and lists of widths."""

from collections.abc import Sequence
from typing import Any

from kd import check
from kd.errors import ConfigError


def shape(image_shape: Sequence[int], *, low: int = 1) -> tuple[int, int, int]:
    """Return `image_shape` as (C, H, W), or raise `ConfigError` unless H and W are at least `low`."""
    sizes = _list("image_shape", image_shape)
    if len(sizes) != 3:
        raise ConfigError(f"Expected `image_shape` to be (channels, height, width), but got {sizes}.")
    channels, height, width = sizes
    return (
        check.integer("image channels", channels, low=1),
        check.integer("image height", height, low=low),
        check.integer("image width", width, low=low),
    )


def widths(name: str, value: Sequence[int], *, shortest: int = 0, longest: int | None = None) -> list[int]:
    """Return `value` as a list of positive whole numbers of an allowed length, or raise `ConfigError`."""
    found = _list(name, value)
    if len(found) < shortest or (longest is not None and len(found) > longest):
        allowed = f"{shortest}" if shortest == longest else f"at least {shortest}"
        raise ConfigError(f"Expected `{name}` to hold {allowed} whole numbers, but got {found}.")
    return [check.integer(f"{name}[{i}]", width, low=1) for i, width in enumerate(found)]


def _list(name: str, value: Any) -> list[Any]:
    # OmegaConf's ListConfig is a Sequence too, and so is a string: `hidden=100` and `hidden="100"` are both mistakes.
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"Expected `{name}` to be a list of whole numbers, but got {value!r}.")
    return list(value)
