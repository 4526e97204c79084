"""What a page knows: run folders, read and checked before anything is shown."""

import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.errors import ConfigError, StoreError
from kd.files import CONFIG, EXAMPLES, METRICS, RESULT
from kd.report.arm import Arm, read_arm
from kd.report.curves import Curves, read_curves
from kd.report.examples import Example, read_examples
from kd.report.fields import get, optional

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """One finished run. `content` is result.json as it is, for what is shown without being computed with."""

    folder: Path
    experiment: str
    seed: int
    method: dict[str, Any]
    data: dict[str, Any]
    arms: dict[str, Arm]
    claim: dict[str, Any] | None
    content: dict[str, Any]
    curves: Curves
    config: str
    examples: list[Example]

    @property
    def change(self) -> float | None:
        """Test accuracy of the student minus that of the baseline; None without both."""
        if not {"baseline", "student"} <= set(self.arms):
            return None
        return self.arms["student"].test.accuracy - self.arms["baseline"].test.accuracy

    @property
    def classes(self) -> int:
        return len(next(iter(self.arms.values())).test.confusion)

    def class_name(self, number: int) -> str:
        names: list[str] = self.data["classes"]
        return str(names[number]) if 0 <= number < len(names) else str(number)


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Return the finished runs in and below the folders, in the given order, within a folder by name, each once.

    A folder without any is left out, which standard error says.

    Raises:
        ConfigError: a folder does not exist, or none of them holds a finished run.
    """
    found: dict[Path, Path] = {}
    folders, empty = list(folders), []
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"There is no folder {folder}.")
        runs = sorted((path.parent for path in folder.rglob(RESULT) if _is_done(path)), key=_natural)
        for run in runs:
            found.setdefault(run.resolve(), run)
        if not runs:
            empty.append(folder)
    if not found:
        places = " nor ".join(map(str, folders))
        raise ConfigError(f"No finished run: neither {places} nor a folder below has a {RESULT} that says so.")
    for folder in empty:
        print(f"Left out, it holds no finished run: {folder}", file=sys.stderr)
    return list(found.values())


def unfinished(folders: Iterable[Path]) -> list[Path]:
    """Return the folders of runs in and below the folders that were begun and are not finished."""
    begun = {path.parent for folder in folders for path in folder.rglob(CONFIG) if path.parent.name != ".hydra"}
    return sorted((run for run in begun if not (run / RESULT).is_file() or not _is_done(run / RESULT)), key=_natural)


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ConfigError: there is no finished run in it.
        StoreError: result.json, metrics.csv or examples.json is damaged.
    """
    path = folder / RESULT
    if not path.is_file() or not _is_done(path):
        raise ConfigError(f"{folder} holds no finished run: it has no {RESULT} that says so.")
    content = _json(path)
    try:
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, this version reads {SCHEMA}")
        _check_shown(content)
        arms = {str(name): read_arm(str(name), block) for name, block in get(content, "arms", dict).items()}
        sizes = {len(arm.test.confusion) for arm in arms.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError("it has no arms, or arms with different classes")
        _check_omitted(content["data"]["omitted"], arms)
        return Run(
            folder=folder,
            experiment=str(get(content, "experiment", str)),
            seed=get(content, "seed", int),
            method=content["method"],
            data=content["data"],
            arms=arms,
            claim=content.get("claim"),
            content=content,
            curves=read_curves(folder / METRICS),
            config=_config(folder / CONFIG),
            examples=read_examples(folder / EXAMPLES, *sizes),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, StoreError):
            raise
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise StoreError(f"{path} is damaged: {reason}. Delete the folder and run it again.") from error


def _check_shown(content: dict[str, Any]) -> None:
    """Raise an error for a block that is passed on as it is, but is not of its type."""
    data, method = get(content, "data", dict), get(content, "method", dict)
    for key in ("train", "val", "test"):
        get(data, key, int)
    for key in ("classes", "omitted", "omitted_from"):
        get(data, key, list)
    for key in ("temperature", "alpha", "beta"):
        optional(method, key, float)
    optional(content, "wall_s", float)
    optional(content, "versions", dict)
    if (origin := optional(content, "forked_from", dict)) is not None:
        get(origin, "folder", str)
    if content.get("claim") is not None:
        blocks = [get(content["claim"], "published", dict), optional(content["claim"], "measured", dict) or {}]
        for block in blocks:
            for arm in block:
                optional(block, arm, dict)


def _check_omitted(omitted: list[Any], arms: dict[str, Arm]) -> None:
    """Raise an error for classes that do not exist, and for a correction where none was left out."""
    classes = len(next(iter(arms.values())).test.confusion)
    for number in omitted:
        if not isinstance(number, int) or not 0 <= number < classes:
            raise ValueError(f"omitted class {number!r:.60} is none of {classes} classes")
    if not omitted and any(arm.correction for arm in arms.values()):
        raise ValueError("an arm has a correction, but no class was omitted")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read: {error}. Delete the folder and run it again.") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} is damaged: it holds no object. Delete the folder and run it again.")
    return content


def _is_done(path: Path) -> bool:
    return _json(path).get("status") == "done"


def _config(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _natural(path: Path) -> list[tuple[str, float]]:
    """Sort `temperature=10` after `temperature=2`."""
    parts = re.split(r"(\d+(?:\.\d+)?)", os.fspath(path))
    return [(text, float(number or 0)) for text, number in zip(parts[::2], [*parts[1::2], ""], strict=True)]
