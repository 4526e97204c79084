"""One arm of a run, read from its block of result.json."""

from dataclasses import dataclass
from typing import Any

from kd.report.correction import Correction, read_correction, read_omitted
from kd.report.fields import get, optional, shares, square


@dataclass(frozen=True)
class Bin:
    """The images whose top probability lies in one of equal bins; both means are None in an empty one."""

    n: int
    accuracy: float | None
    confidence: float | None


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one batch, by its number of images."""

    milliseconds: dict[int, float]
    device: str
    threads: int
    repeats: int


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
    mistakes_agreement: float | None  # on the teacher's mistakes
    mistakes: int | None  # of the teacher
    reliability: list[Bin]


@dataclass(frozen=True)
class Arm:
    """One trained network of a run. A network trained elsewhere has no training figures."""

    name: str
    model: str
    params: int | None
    macs: int | None
    size_bytes: int | None
    latency: Latency | None
    epochs: int | None
    selected_epoch: int | None
    initial_epochs: int  # of a first stage, before the others
    train_s: float | None
    images_per_s: float | None
    val_accuracy: float | None
    test: Test
    omitted: list[dict[str, Any]]
    correction: Correction | None


def read_arm(name: str, block: dict[str, Any]) -> Arm:
    """Raises KeyError, TypeError or ValueError for what is missing or not of its type."""
    test, val = get(block, "test", dict), block.get("val")
    classes = len(get(test, "confusion", list))
    corrected = optional(block, "correction", dict)
    try:
        return Arm(
            name=name,
            model=str(block["model"]),
            params=optional(block, "params", int),
            macs=optional(block, "macs", int),
            size_bytes=optional(block, "size_bytes", int),
            latency=_latency(block),
            epochs=optional(block, "epochs", int),
            selected_epoch=optional(block, "selected_epoch", int),
            initial_epochs=optional(block, "initial_epochs", int) or 0,
            train_s=optional(block, "train_s", float),
            images_per_s=optional(block, "images_per_s", float),
            val_accuracy=None if val is None else float(get(val, "accuracy", float)),
            test=_test(test, classes),
            omitted=read_omitted(block),
            correction=None if corrected is None else read_correction(corrected, classes),
        )
    except ValueError as error:
        raise ValueError(f"of arm {name!r}, {error}") from error


def _test(test: dict[str, Any], classes: int) -> Test:
    return Test(
        accuracy=get(test, "accuracy", float),
        errors=get(test, "errors", int),
        n=get(test, "n", int),
        nll=get(test, "nll", float),
        ece=get(test, "ece", float),
        per_class=shares(test, "per_class_accuracy", classes),
        confusion=square(test, "confusion", classes),
        agreement=optional(test, "agreement_with_teacher", float),
        kl=optional(test, "kl_to_teacher", float),
        mistakes_agreement=optional(test, "agreement_on_teacher_mistakes", float),
        mistakes=optional(test, "teacher_mistakes", int),
        reliability=[_bin(entry) for entry in optional(test, "reliability", list) or ()],
    )


def _bin(entry: dict[str, Any]) -> Bin:
    n = get(entry, "n", int)
    found = Bin(n, optional(entry, "accuracy", float), optional(entry, "confidence", float))
    if n and (found.accuracy is None or found.confidence is None):
        raise ValueError(f"a bin of {n} images has no accuracy or no confidence")
    return found


def _latency(block: dict[str, Any]) -> Latency | None:
    found = optional(block, "latency_ms", dict)
    if found is None:
        return None
    batches = {int(key): float(get(found, key, float)) for key in found if str(key).isdecimal()}
    return Latency(batches, get(found, "device", str), get(found, "threads", int), get(found, "repeats", int))
