"""The table that a person reads at the end of a run. Needs nothing but result.json's content."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

#: what each row shows of an arm's block
ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "network": lambda arm: str(arm["model"]),
    "parameters": lambda arm: f"{arm['params']:,}",
    "MACs per image": lambda arm: _short(arm["macs"]),
    "size on disk": lambda arm: _size(arm.get("size_bytes")),
    "ms for 1 / 256": lambda arm: _latency(arm.get("latency_ms")),
    "test accuracy": lambda arm: f"{arm['test']['accuracy']:.2%}",
    "test errors": lambda arm: f"{arm['test']['errors']:,} of {arm['test']['n']:,}",
    "NLL": lambda arm: f"{arm['test']['nll']:.4f}",
    "ECE": lambda arm: f"{arm['test']['ece']:.4f}",
    "agrees with teacher": lambda arm: _or_dash(arm["test"]["agreement_with_teacher"], ".2%"),
    "validation accuracy": lambda arm: "-" if arm["val"] is None else f"{arm['val']['accuracy']:.2%}",
    "training seconds": lambda arm: _or_dash(arm["train_s"], ",.1f"),
    "images/s": lambda arm: _or_dash(arm["images_per_s"], ",.0f"),
}
#: what a result of an older version, or on another device, may not have: left out where no arm has it
MAYBE = ("size on disk", "ms for 1 / 256")


def show(result: dict[str, Any], console: Console) -> None:
    """Print a finished run: one column per arm, the published number beside the measured one where there is one."""
    arms, claim = result["arms"], result["claim"]
    table = Table(title=f"{result['experiment']}, seed {result['seed']}, {result['device']}", title_justify="left")
    table.caption, table.caption_justify = _timed_on(list(arms.values())), "left"
    table.add_column("", no_wrap=True)
    for name in arms:
        table.add_column(name, justify="right", overflow="fold")
    for title, text in ROWS.items():
        cells = [escape(text(block)) for block in arms.values()]
        if title not in MAYBE or set(cells) != {"-"}:
            table.add_row(title, *cells)
    if any(block.get("initial_epochs") for block in arms.values()):
        table.add_row("epochs", *(_epochs(block) for block in arms.values()))
    for title, texts in _omission(list(arms.values())):
        table.add_row(title, *texts)
    if claim:
        published = [_published(claim["published"].get(name, {})) for name in arms]
        table.add_row("published", *published, style="bold")
    console.print(table)
    if {"baseline", "student"} <= set(arms):
        baseline, student = (arms[name]["test"]["accuracy"] for name in ("baseline", "student"))
        cause = "Training" if result["method"]["name"] == "hard" else "Distillation"
        console.print(
            f"{cause} changed test accuracy by {100 * round(student - baseline, 12) + 0.0:+.2f} points "
            f"({result['data']['test']:,} test images). One seed is no verdict.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if claim:
        published_words = f"Published: {claim['statement']} ({claim['source']})."
        console.print(published_words, highlight=False, markup=False, soft_wrap=True)


def _epochs(arm: dict[str, Any]) -> str:
    """An arm's epochs, those of a first stage before the others, e.g. `1 + 8`."""
    epochs = _or_dash(arm["epochs"], "d")
    return f"{arm['initial_epochs']} + {epochs}" if arm.get("initial_epochs") else epochs


def _omission(arms: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """What the arms that never saw some classes make of them: as trained, and with a bias set without the test set."""
    corrections = [arm.get("correction") for arm in arms]
    if not any(corrections):
        return []
    before = [_or_dash(found["before"]["omitted_accuracy"] if found else None, ".2%") for found in corrections]
    rows = [("on omitted classes", before)]
    for rule in ("fixed", "prior"):
        blocks = [found["rules"].get(rule) if found else None for found in corrections]
        if any(blocks):
            shares = [_or_dash(block["omitted_accuracy"] if block else None, ".2%") for block in blocks]
            rows.append((f"  with {rule} bias", shares))
            rows.append(("  then on all", [_or_dash(block["accuracy"] if block else None, ".2%") for block in blocks]))
    return rows


def _published(metrics: dict[str, float]) -> str:
    """The published numbers of the whole test set; those of omitted classes are in the claim's words."""
    shown = {name: value for name, value in metrics.items() if not name.startswith(("omitted_", "corrected_"))}
    texts = [f"{value:.2%}" if name == "accuracy" else f"{value:g} {name}" for name, value in shown.items()]
    return ", ".join(texts) or "-"


def _size(count: int | None) -> str:
    return "-" if count is None else f"{_short(count)}B" if count >= 1000 else f"{count} B"


def _latency(found: dict[str, Any] | None) -> str:
    """Median milliseconds of a batch of one image and of 256."""
    return "-" if found is None else f"{found['1']:.3g} / {found['256']:.3g}"


def _timed_on(arms: list[dict[str, Any]]) -> str | None:
    """What the milliseconds are, e.g. `ms: one batch of 1 and of 256 images, median, cpu, 1 thread`."""
    blocks = [block for arm in arms if (block := arm.get("latency_ms"))]
    places = [f"{one['device']}, {one['threads']} thread{'s' * (one['threads'] != 1)}" for one in blocks]
    where = "; ".join(dict.fromkeys(places))
    return escape(f"ms: one batch of 1 and of 256 images, median, {where}") if where else None


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _short(count: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
