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
    "test accuracy": lambda arm: f"{arm['test']['accuracy']:.2%}",
    "test errors": lambda arm: f"{arm['test']['errors']:,} of {arm['test']['n']:,}",
    "NLL": lambda arm: f"{arm['test']['nll']:.4f}",
    "ECE": lambda arm: f"{arm['test']['ece']:.4f}",
    "agrees with teacher": lambda arm: _or_dash(arm["test"]["agreement_with_teacher"], ".2%"),
    "validation accuracy": lambda arm: "-" if arm["val"] is None else f"{arm['val']['accuracy']:.2%}",
    "training seconds": lambda arm: _or_dash(arm["train_s"], ",.1f"),
    "images/s": lambda arm: _or_dash(arm["images_per_s"], ",.0f"),
}


def show(result: dict[str, Any], console: Console) -> None:
    """Print a finished run: one column per arm, the published number beside the measured one where there is one."""
    arms, claim = result["arms"], result["claim"]
    table = Table(title=f"{result['experiment']}, seed {result['seed']}, {result['device']}", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in arms:
        table.add_column(name, justify="right", overflow="fold")
    for title, text in ROWS.items():
        table.add_row(title, *(escape(text(block)) for block in arms.values()))
    if any(block.get("initial_epochs") for block in arms.values()):
        table.add_row("epochs", *(_epochs(block) for block in arms.values()))
    if claim:
        published = [_published(claim["published"].get(name, {})) for name in arms]
        table.add_row("published", *published, style="bold")
    console.print(table)
    if {"baseline", "student"} <= set(arms):
        baseline, student = (arms[name]["test"]["accuracy"] for name in ("baseline", "student"))
        console.print(
            f"Distillation changed test accuracy by {100 * (student - baseline):+.2f} points "
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


def _published(metrics: dict[str, float]) -> str:
    texts = [f"{value:.2%}" if name == "accuracy" else f"{value:g} {name}" for name, value in metrics.items()]
    return ", ".join(texts) or "-"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _short(count: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
