"""examples.json: test images with what each arm says of them, checked before anything is shown."""

import base64
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.errors import StoreError
from kd.report.fields import get

SCHEMA = 1
KINDS = ("dark", "changed")
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Example:
    """A test image: `png` is its picture in base64, `logits` has one number per class for each arm."""

    index: int
    target: int
    kind: str
    png: str
    logits: dict[str, list[float]]

    def probabilities(self, arm: str, temperature: float = 1.0) -> list[float]:
        """softmax(logits / T) of an arm."""
        scaled = [value / temperature for value in self.logits[arm]]
        highest = max(scaled)
        powers = [math.exp(value - highest) for value in scaled]
        total = sum(powers)
        return [power / total for power in powers]

    def predicted(self, arm: str) -> int:
        logits = self.logits[arm]
        return logits.index(max(logits))


def read_examples(path: Path, classes: int) -> list[Example]:
    """Read the file; a folder without it has none. Raises `StoreError` if it is damaged."""
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        if content.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {content.get('schema')!r}, this version reads {SCHEMA}")
        return [_example(image, classes) for image in get(content, "images", list)]
    except (OSError, KeyError, ValueError, OverflowError, RecursionError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise StoreError(
            f"{path} is damaged: {reason}. Delete it for a page without examples, or the folder and run it again."
        ) from error


def _example(image: Any, classes: int) -> Example:
    if not isinstance(image, dict):
        raise ValueError(f"one of its images is {image!r:.60}")
    index, target, kind = get(image, "index", int), get(image, "target", int), get(image, "kind", str)
    where = f"image {index}: "
    if not 0 <= target < classes:
        raise ValueError(f"{where}target is {target}, of {classes} classes")
    if kind not in KINDS:
        raise ValueError(f"{where}kind is {kind!r:.60}, not one of {', '.join(KINDS)}")
    logits = {str(arm): values for arm, values in get(image, "logits", dict).items()}
    for arm, values in logits.items():
        if not isinstance(values, list) or len(values) != classes or not all(map(_finite, values)):
            raise ValueError(f"{where}the logits of {arm!r} are not {classes} finite numbers")
    if not logits:
        raise ValueError(f"{where}there are no logits")
    return Example(index, target, kind, _png(get(image, "png", str), where), logits)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _png(text: str, where: str) -> str:
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"{where}png is no base64 ({error})") from error
    if not content.startswith(PNG):
        raise ValueError(f"{where}png is no PNG file")
    return text
