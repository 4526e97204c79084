"""An audit for the person at the terminal: tables, then what they mean in words."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kd.audit import words

Content = dict[str, Any]  # of audit.json


def show(content: Content, console: Console) -> None:
    """Print the audit."""
    title = f"{content['experiment']}: {len(content['seeds'])} seeds, {content['device'] or 'nothing measured'}"
    if content["shortened"]:
        title += f"\nshortened: {words.shortened(content['shortened'])}"
    console.print(_arms(content, title))
    console.print(_comparisons(content))
    if content["controls"]:
        console.print(_controls(content["controls"]))
    for line in _lines(content):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _arms(content: Content, title: str) -> Table:
    """Per arm and metric the published number, the measured one, and one column per seed."""
    heads = ["", "published", "mean ± sd", "95% interval", *(f"seed {seed}" for seed in content["seeds"])]
    rows = []
    for arm, metrics in content["arms"].items():
        for metric, block in metrics.items():
            shown = [
                words.value(metric, block["published"]),
                words.spread(metric, block),
                words.interval(metric, block),
            ]
            shown += [words.value(metric, block["values"].get(str(seed))) for seed in content["seeds"]]
            rows.append([words.named(arm, metric), *shown])
    return _table(title, heads, rows)


def _comparisons(content: Content) -> Table:
    """Per comparison its statistics and verdict, and the difference of every seed."""
    several = len(content["comparisons"]) > 1
    heads = ["points", "n", "mean ± sd", "95% interval", "p", *(["p (Holm)"] if several else []), "verdict"]
    heads += [f"seed {seed}" for seed in content["seeds"]]
    rows = []
    for name, one in content["comparisons"].items():
        adjusted = [words.p_value(one["p_holm"])] if several else []
        row = [f"{name}: {words.sides(one)}", *_statistics(one), *adjusted, one["verdict"]]
        rows.append([*row, *(_points(one["differences"].get(str(seed))) for seed in content["seeds"])])
    return _table("Comparisons, paired by seed", heads, rows)


def _controls(controls: Content) -> Table:
    """Each control against the baseline, and the student against each control."""
    rows = [["student - baseline", "", *_statistics(controls["gain"]), controls["gain"]["verdict"]]]
    for name, one in controls["found"].items():
        accuracy = words.spread("accuracy", one["accuracy"])
        rows.append(
            [f"{name} - baseline", accuracy, *_statistics(one["minus_baseline"]), one["minus_baseline"]["verdict"]]
        )
        rows.append([f"student - {name}", "", *_statistics(one["student_minus"]), one["student_minus"]["verdict"]])
    heads = ["points", "accuracy", "n", "mean ± sd", "95% interval", "p", "verdict"]
    return _table("Controls, test accuracy, paired by seed", heads, rows)


def _statistics(one: Content) -> list[str]:
    return [str(one["n"]), words.difference(one), words.difference_interval(one), words.p_value(one["p"])]


def _lines(content: Content) -> list[str]:
    """The outcome in sentences."""
    lines = [f"{name}: {one['verdict']} ({one['statement']})" for name, one in content["comparisons"].items()]
    lines += [f"{name}: {one['missing']}" for name, one in content["comparisons"].items() if one["missing"]]
    if controls := content["controls"]:
        lines.append(f"controls: {controls['words']}")
        lines += [f"control {name} left out: {why}" for name, why in controls["skipped"].items()]
    if claim := content["claim"]:
        lines.append(f"Published: {claim['statement']} ({claim['source']}).")
    if content["shortened"]:
        lines.append("A shortened setup says nothing about the published claim.")
    lines += content["notes"]
    for failure in content["failed"]:
        lines.append(f"Failed (status {failure['status']}): {failure['error']}")
        lines.append(f"  again: {failure['command']}")
    return lines


def _table(title: str, heads: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _points(difference: float | None) -> str:
    return "-" if difference is None else f"{100 * difference:+.2f}"
