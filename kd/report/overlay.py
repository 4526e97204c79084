"""The students' training curves over each other."""

import math

from kd.report.configurations import recipe_text
from kd.report.pictures import Line, Picture, line_chart
from kd.report.read import Run

MANY = 24  # curves beyond which nobody can follow one


def overlay(name: str, runs: list[Run]) -> Picture | None:
    """Validation accuracy by epoch, seeds of one configuration alike. None if nothing was logged, or too much."""
    labels = _labels(runs)
    steps = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    lines = []
    for run, label in zip(runs, labels, strict=True):
        curve = run.curves.get("student", {}).get("val/accuracy", [])
        if known := [(epoch, value) for epoch, value in curve if math.isfinite(value)]:
            lines.append(Line(label, known, None, steps[label]))
    if not 2 <= len(lines) <= MANY:
        return None
    return line_chart(name, "Validation accuracy of the students by epoch", lines, percent=True)


def _labels(runs: list[Run]) -> list[str]:
    """Each run's configuration in words: of its settings those that are not the same in all runs."""
    settings = [_settings(run) for run in runs]
    varying = [i for i in range(4) if len({one[i] for one in settings}) > 1]
    labels = [", ".join(one[i] for i in varying) or "student" for one in settings]
    recipes = [(run.experiment, recipe_text(run.config)) for run in runs]
    by_label: dict[str, list[tuple[str, str]]] = {}
    for label, recipe in zip(labels, recipes, strict=True):
        known = by_label.setdefault(label, [])
        if recipe not in known:
            known.append(recipe)
    return [
        label if len(by_label[label]) == 1 else f"{label} ({by_label[label].index(recipe) + 1})"
        for label, recipe in zip(labels, recipes, strict=True)
    ]


def _settings(run: Run) -> tuple[str, str, str, str]:
    method = run.method
    words = {"T": method.get("temperature"), "alpha": method.get("alpha")}
    temperature, alpha = (f"no {word}" if v is None else f"{word} = {v:g}" for word, v in words.items())
    return run.experiment, str(method.get("name")), temperature, alpha
