"""The table that a person reads at the end of a run. Needs nothing but result.json's content."""

from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 128


def show(result: dict[str, Any]) -> None:
    """Print the table of a finished run, whole: a narrow terminal wraps its lines."""
    console = Console()
    console.width = max(console.width, WIDTH)
    claim = result["claim"]
    table = Table(title=f"{result['experiment']}, seed {result['seed']}", title_justify="left")
    table.add_column("arm", style="bold")
    table.add_column("network")
    columns = ["params", "MACs", "test acc.", "errors", "NLL", "ECE", "agree", "train s", "images/s"]
    for column in [*columns, *(["published"] if claim else [])]:
        table.add_column(column, justify="right", no_wrap=True)
    for name, block in result["arms"].items():
        test = block["test"]
        row = [
            name,
            block["model"],
            f"{block['params']:,}",
            _short(block["macs"]),
            f"{test['accuracy']:.2%}",
            f"{test['errors']:,}",
            f"{test['nll']:.3f}",
            f"{test['ece']:.3f}",
            _or_dash(test["agreement_with_teacher"], ".2%"),
            _or_dash(block["train_s"], ",.1f"),
            _or_dash(block["images_per_s"], ",.0f"),
        ]
        table.add_row(*row, *([_published(claim["published"].get(name, {}))] if claim else []))
    console.print(table)
    if {"baseline", "student"} <= set(result["arms"]):
        baseline, student = (result["arms"][name]["test"]["accuracy"] for name in ("baseline", "student"))
        console.print(
            f"Distillation changed test accuracy by {100 * (student - baseline):+.2f} points "
            f"({result['data']['test']:,} test images). One seed is no verdict.",
            highlight=False,
        )
    if claim:
        console.print(f"Published: {claim['statement']} ({claim['source']})", highlight=False)


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
