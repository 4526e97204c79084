"""What a page knows: run folders, read and checked before anything is shown."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.errors import ConfigError, StoreError
from kd.report.curves import Curves, read_curves

SCHEMA = 1
RESULT, METRICS, CONFIG = "result.json", "metrics.csv", "config.yaml"


@dataclass(frozen=True)
class Test:
    """An arm on the test set. Accuracies are fractions; `per_class` is None for a class without test images."""

    accuracy: float
    errors: int
    n: int
    nll: float
    ece: float
    per_class: list[float | None]
    confusion: list[list[int]]
    agreement: float | None
    kl: float | None


@dataclass(frozen=True)
class Arm:
    """One trained network of a run. A network trained elsewhere has no training figures."""

    name: str
    model: str
    params: int | None
    macs: int | None
    epochs: int | None
    selected_epoch: int | None
    initial_epochs: int  # of a first stage, before the others
    train_s: float | None
    images_per_s: float | None
    val_accuracy: float | None
    test: Test
    omitted: list[dict[str, Any]]


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

    Raises:
        ConfigError: a folder does not exist, or holds no finished run.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"There is no folder {folder}.")
        runs = sorted((path.parent for path in folder.rglob(RESULT) if _is_done(path)), key=_natural)
        if not runs:
            raise ConfigError(
                f"{folder} holds no finished run: neither it nor a folder below has a {RESULT} that says so."
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ConfigError: there is no finished run in it.
        StoreError: result.json or metrics.csv is damaged.
    """
    path = folder / RESULT
    if not path.is_file() or not _is_done(path):
        raise ConfigError(f"{folder} holds no finished run: it has no {RESULT} that says so.")
    content = _json(path)
    try:
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}, this version reads {SCHEMA}")
        _check_shown(content)
        arms = {str(name): _arm(str(name), block) for name, block in _get(content, "arms", dict).items()}
        sizes = {len(arm.test.confusion) for arm in arms.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError("it has no arms, or arms with different classes")
        return Run(
            folder=folder,
            experiment=str(_get(content, "experiment", str)),
            seed=_get(content, "seed", int),
            method=content["method"],
            data=content["data"],
            arms=arms,
            claim=content.get("claim"),
            content=content,
            curves=read_curves(folder / METRICS),
            config=_config(folder / CONFIG),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, StoreError):
            raise
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise StoreError(f"{path} is damaged: {reason}. Delete the folder and run it again.") from error


def _arm(name: str, block: dict[str, Any]) -> Arm:
    test, val, omitted = _get(block, "test", dict), block.get("val"), block.get("omitted")
    confusion = _get(test, "confusion", list)
    per_class = [None if value is None else float(value) for value in _get(test, "per_class_accuracy", list)]
    if any(len(row) != len(confusion) for row in confusion) or len(per_class) != len(confusion):
        raise ValueError(f"the confusion matrix of arm {name!r} is not square, or not of the classes")
    return Arm(
        name=name,
        model=str(block["model"]),
        params=_optional(block, "params", int),
        macs=_optional(block, "macs", int),
        epochs=_optional(block, "epochs", int),
        selected_epoch=_optional(block, "selected_epoch", int),
        initial_epochs=_optional(block, "initial_epochs", int) or 0,
        train_s=_optional(block, "train_s", float),
        images_per_s=_optional(block, "images_per_s", float),
        val_accuracy=None if val is None else float(_get(val, "accuracy", float)),
        test=Test(
            accuracy=_get(test, "accuracy", float),
            errors=_get(test, "errors", int),
            n=_get(test, "n", int),
            nll=_get(test, "nll", float),
            ece=_get(test, "ece", float),
            per_class=per_class,
            confusion=[[int(count) for count in row] for row in confusion],
            agreement=_optional(test, "agreement_with_teacher", float),
            kl=_optional(test, "kl_to_teacher", float),
        ),
        omitted=[_correction(entry) for entry in ([omitted] if isinstance(omitted, dict) else omitted or ())],
    )


def _correction(entry: dict[str, Any]) -> dict[str, Any]:
    """One omitted class under one rule, with numbers where a page shows numbers."""
    shown = {
        key: _optional(entry, key, float) for key in ("accuracy_before", "accuracy_after", "overall_after", "bias")
    }
    return {"class": _get(entry, "class", int), "rule": entry.get("rule"), **shown}


def _check_shown(content: dict[str, Any]) -> None:
    """Raise an error for a block that is passed on as it is, but is not of its type."""
    data, method = _get(content, "data", dict), _get(content, "method", dict)
    for key in ("train", "val", "test"):
        _get(data, key, int)
    for key in ("classes", "omitted", "omitted_from"):
        _get(data, key, list)
    for number in data["omitted"]:
        int(number)
    for key in ("temperature", "alpha", "beta"):
        _optional(method, key, float)
    _optional(content, "wall_s", float)
    _optional(content, "versions", dict)
    if content.get("claim") is not None:
        blocks = [_get(content["claim"], "published", dict), _optional(content["claim"], "measured", dict) or {}]
        for block in blocks:
            for arm in block:
                _optional(block, arm, dict)


def _get(block: dict[str, Any], key: str, kind: type) -> Any:
    value = block[key]
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
        raise ValueError(f"{key} is {value!r:.60}")
    return value


def _optional(block: dict[str, Any], key: str, kind: type) -> Any:
    return None if block.get(key) is None else _get(block, key, kind)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
