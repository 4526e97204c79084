"""An audit for the person at the terminal: tables, then what they mean in words."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kd.audit import words

Content = dict[str, Any]  # of audit.json
NAME = 12  # letters of a name that a line has at least


def show(content: Content, console: Console) -> None:
    """Print the audit."""
    mark = f" (shortened: {words.shortened(content['shortened'])})" if content["shortened"] else ""
    seeds = len(content["seeds"])
    title = f"{content['experiment']}, {seeds} seed{'s' * (seeds > 1)}, {content['device'] or 'nothing measured'}{mark}"
    console.print(_arms(content, title))
    if content["overrides"]:
        console.print(words.overrides(content), highlight=False, markup=False, soft_wrap=True)
    console.print(_seeds(content))
    console.print(_comparisons(content))
    if content["controls"]:
        console.print(_controls(content["controls"]))
    for line in _lines(content):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _arms(content: Content, title: str) -> Table:
    """Per arm and metric the published number beside the measured one."""
    rows = [
        [
            words.named(arm, name),
            words.value(name, one["published"]),
            words.spread(name, one),
            words.interval(name, one),
        ]
        for arm, metrics in content["arms"].items()
        for name, one in metrics.items()
    ]
    return _table(title, ["", "published", "measured", "95% interval"], rows)


def _seeds(content: Content) -> Table:
    """Every seed's accuracies and differences."""
    arms, comparisons = content["arms"], content["comparisons"]
    rows = []
    for seed in map(str, content["seeds"]):
        accuracies = [words.value("accuracy", metrics["accuracy"]["values"].get(seed)) for metrics in arms.values()]
        rows.append([seed, *accuracies, *(words.points(one["differences"].get(seed)) for one in comparisons.values())])
    return _table("Test accuracy and differences by seed", ["seed", *arms, *comparisons], rows)


def _comparisons(content: Content) -> Table:
    """Per comparison its statistics and verdict."""
    p = "p (Holm)" if any(one["judged_together"] > 1 for one in content["comparisons"].values()) else "p"
    rows = [
        [name, *_statistics(one | {"p": one["p_holm"]}), one["verdict"]] for name, one in content["comparisons"].items()
    ]
    return _table("Differences in points, paired by seed", ["", "n", "mean ± sd", "95% interval", p, "verdict"], rows)


def _controls(controls: Content) -> Table:
    """Each control against the baseline, and the student against each control."""
    rows = [["student - baseline", *_statistics(controls["gain"]), controls["gain"]["verdict"]]]
    for name, one in controls["found"].items():
        for label, side in ((f"{name} - baseline", "minus_baseline"), (f"student - {name}", "student_minus")):
            rows.append([label, *_statistics(one[side]), one[side]["verdict"]])
    heads = ["", "n", "mean ± sd", "95% interval", "p", "verdict"]
    return _table("Controls: differences in test accuracy, in points", heads, rows)


def _statistics(one: Content) -> list[str]:
    return [str(one["n"]), words.difference(one), words.difference_interval(one), words.p_value(one["p"])]


def _lines(content: Content) -> list[str]:
    """The outcome in sentences."""
    lines = [
        f"{name} ({words.sides(one)}): {words.verdict(one)} ({one['statement']})"
        for name, one in content["comparisons"].items()
    ]
    lines += [f"{name}: {one['missing']}" for name, one in content["comparisons"].items() if one["missing"]]
    if controls := content["controls"]:
        lines.append(f"controls: {words.in_setup(controls['setup'], controls['words'])}")
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
        longest = max((len(row[number]) for row in rows), default=0)
        # names may be folded, numbers never: rather their heads
        least = longest if number else min(longest, NAME)
        table.add_column(head, justify="right" if number else "left", overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
