"""The table of a run's arms, one column each."""

from typing import Any

from kd.report import words
from kd.report.arm import Arm, Latency
from kd.report.markup import DASH, Html, breakable, join, measured, percent, short, table, tag
from kd.report.pictures import role
from kd.report.read import Run

NOTE = (
    "NLL: mean negative log-likelihood, in nats. ECE: expected calibration error, 15 bins. KL to teacher: mean "
    "KL(teacher || network) at T = 1, in nats. A dash: not measured, or trained elsewhere."
)
FIRST_STAGE = "In brackets: the epochs of a first stage."
HELD_OUT = (
    "Arms that never saw some classes were validated without these: their validation accuracy is not comparable with "
    "the others'."
)


def results(run: Run) -> Html:
    """The numbers of every arm. A row that no arm has, as in older results, is left out where it is a late addition."""
    arms = list(run.arms.values())
    rows: list[list[object]] = [
        ["network", *(breakable(arm.model) for arm in arms)],
        ["parameters", *(measured(arm.params, ",") for arm in arms)],
        *_optional("size on disk", [_size(arm.size_bytes) for arm in arms]),
        ["MACs per image", *(short(arm.macs) for arm in arms)],
        *(row for batch in _batches(arms) for row in _optional(*_latency_row(batch, arms))),
        ["test accuracy", *(percent(arm.test.accuracy) for arm in arms)],
        ["test errors", *(measured(arm.test.errors, ",") for arm in arms)],
        ["NLL", *(measured(arm.test.nll, ".4f") for arm in arms)],
        ["ECE", *(measured(arm.test.ece, ".4f") for arm in arms)],
        ["agreement with teacher", *(percent(arm.test.agreement) for arm in arms)],
        *_optional("agreement on its mistakes", [percent(arm.test.mistakes_agreement) for arm in arms]),
        ["KL to teacher", *(measured(arm.test.kl, ".4f") for arm in arms)],
        ["validation accuracy", *(percent(arm.val_accuracy) for arm in arms)],
        ["kept epoch", *(_kept(arm) for arm in arms)],
        ["training seconds", *(measured(arm.train_s, ",.1f") for arm in arms)],
        ["images/s", *(measured(arm.images_per_s, ",.0f") for arm in arms)],
    ]
    if run.claim:
        other = words.other_method(run.claim, run.method) if "student" in run.claim["published"] else None
        title = f"published (student: {other})" if other else "published"
        rows.append([title, *(_published(run.claim["published"].get(arm.name)) for arm in arms)])
    head: list[object] = ["", *(tag("span", arm.name, class_=f"arm {role(arm.name)}") for arm in arms)]
    notes = " ".join([NOTE, *_conditions(run), *_mistakes(arms), *_how_timed(arms)])
    return join([table(head, rows), tag("p", notes, class_="note")])


def _conditions(run: Run) -> list[str]:
    """What holds of some runs only."""
    first = [FIRST_STAGE] if any(arm.initial_epochs for arm in run.arms.values()) else []
    shown = any(arm.val_accuracy is not None for arm in run.arms.values())
    return [*first, *([HELD_OUT] if run.data["omitted"] and shown else [])]


def _optional(title: str, cells: list[Html]) -> list[list[object]]:
    return [[title, *cells]] if any(cell != DASH for cell in cells) else []


def _size(count: int | None) -> Html:
    """Bytes in powers of 1,000."""
    if count is None:
        return Html(DASH)
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return tag("data", f"{count / size:.1f} {unit}", value=count)
    return tag("data", f"{count} B", value=count)


def _batches(arms: list[Arm]) -> list[int]:
    return sorted({batch for arm in arms if arm.latency for batch in arm.latency.milliseconds})


def _latency_row(batch: int, arms: list[Arm]) -> tuple[str, list[Html]]:
    title = "latency, 1 image" if batch == 1 else f"latency, {batch:,} images"
    return title, [_milliseconds(arm.latency, batch) for arm in arms]


def _milliseconds(latency: Latency | None, batch: int) -> Html:
    value = None if latency is None else latency.milliseconds.get(batch)
    if value is None:
        return Html(DASH)
    return tag("data", f"{value:#.3g} ms" if value < 99.95 else f"{value:,.0f} ms", value=repr(value))


def _mistakes(arms: list[Arm]) -> list[str]:
    found = next((arm.test.mistakes for arm in arms if arm.test.mistakes is not None), None)
    if found is None:
        return []
    which = "image that the teacher gets" if found == 1 else "images that the teacher gets"
    return [f"Agreement on its mistakes: the share of the {found:,} {which} wrong on which the arm errs alike."]


def _how_timed(arms: list[Arm]) -> list[str]:
    """On what the latencies were measured: once, if on the same for all."""
    repeats: dict[str, list[int]] = {}
    for one in filter(None, (arm.latency for arm in arms)):
        where = f"{one.device}, {one.threads} thread{'s' * (one.threads != 1)}"
        repeats.setdefault(where, []).append(one.repeats)
    ways = [f"median of {_span(counts)} repeats on {where}" for where, counts in repeats.items()]
    return [f"Latency: milliseconds for one batch, {'; '.join(ways)}."] if ways else []


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _kept(arm: Arm) -> str:
    if arm.selected_epoch is None:
        return DASH
    first = f" (+ {arm.initial_epochs})" if arm.initial_epochs else ""
    return f"{arm.selected_epoch} of {arm.epochs}{first}"


def _published(metrics: dict[str, Any] | None) -> object:
    """The published numbers of the whole test set; those of omitted classes stand in a table of their own."""
    found = {name: value for name, value in (metrics or {}).items() if not words.is_corrected(name)}
    if not found:
        return DASH
    shown = [
        [words.metric_value(metric, value), "" if metric == "accuracy" else f" {metric}"]
        for metric, value in found.items()
    ]
    return join([part for i, pair in enumerate(shown) for part in (["; "] if i else []) + pair])
