"""Reading sweep.json, and a job in a few words. Imports nothing that takes time: pages need it too."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

FILE = "sweep.json"


def read_sweep(folder: Path) -> dict[str, Any] | None:
    """Return what sweep.json holds; None if there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("jobs"), list):
            return content
    return None


def in_words(overrides: Iterable[str]) -> str:
    """Overrides without their groups: `temperature=2 seed=0`."""
    parted = (override.partition("=") for override in overrides)
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in parted) or "default"
