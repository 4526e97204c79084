"""What a sweep shows beyond its table: T against alpha, accuracy by T, every run across its settings, all curves."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kd.report.configurations import Grid, accuracy, grids, validation
from kd.report.heatmap import READABLE, difference_map, validation_map
from kd.report.markup import Html, figure, join, tag
from kd.report.overlay import MANY, overlay
from kd.report.parallel import left_out, parallel, without_axis
from kd.report.pictures import Picture
from kd.report.read import Run
from kd.report.temperature import by_temperature

CHOOSE = (
    "A cell is the mean of its n seeds; settings that were not run stay empty. Choose T and alpha by validation "
    "accuracy, the first map, never by the test difference: the frame marks the highest mean validation accuracy."
)
VALIDATION = "Student's validation accuracy; the palest cell is the lowest of these, the strongest the highest."
DIFFERENCE = (
    "Test accuracy, student minus baseline, in points; blue above 0, orange below, the strongest the largest here, "
    "however small."
)
UNCHOSEN = "No validation accuracy was measured in these runs, and test accuracy is not what T and alpha are chosen by."
PARALLEL = (
    "Every run is a line: blue where the student's test accuracy is above the baseline's, orange where it is below, "
    "grey where they are equal or there is no baseline. Drag along an axis to see only the runs that pass there."
)


@dataclass(frozen=True)
class _Drawing:
    """A picture that may be drawn, and its caption."""

    name: str
    draw: Callable[[], Picture | None]
    caption: str


def sweep_pictures(runs: list[Run], names: list[str]) -> dict[str, Picture]:
    """The pictures by name; those that would show nothing are not drawn."""
    drawings = [drawing for number, grid in enumerate(grids(runs)) for drawing in _of_grid(number, grid)]
    drawn = [drawing.draw() for drawing in [*drawings, *_of_experiments(runs)]]
    drawn.append(parallel("parallel", runs, names))
    return {picture.name: picture for picture in drawn if picture is not None}


def panels(runs: list[Run], drawn: dict[str, Picture]) -> Html:
    """The pictures with their captions, one section each."""
    parts: list[Html] = []
    for number, grid in enumerate(grids(runs)):
        heat, lines = _of_grid(number, grid)[:2], _of_grid(number, grid)[2:]
        chosen = heat[0].name in drawn
        note = tag("p", CHOOSE if chosen else UNCHOSEN, class_="note")
        shape = "two" if len(grid.temperatures) <= READABLE else "two broad"
        shown = [*_shown(heat, drawn, shape), note, *_shown(lines, drawn, "two")]
        parts.append(tag("section", tag("h2", f"T and alpha: {grid.title}"), *shown))
    if "parallel" in drawn:
        missing = f" Not measured in every run, and left out: {', '.join(left_out(runs))}." if left_out(runs) else ""
        if undrawn := without_axis(runs):
            missing += f" The runs also differ in {undrawn} other settings, which have no axis."
        content = tag("div", figure(drawn["parallel"].inline(), PARALLEL + missing), class_="broad")
        parts.append(tag("section", tag("h2", "All runs across their settings"), content))
    curves = _of_experiments(runs)
    if shown := _shown(curves, drawn, "two"):
        parts.append(tag("section", tag("h2", "Training of the students"), *shown))
    elif any("student" in run.curves for run in runs) and len(runs) > MANY:
        note = tag("p", f"More than {MANY} curves are not drawn over each other; each run has its own below.")
        parts.append(tag("section", tag("h2", "Training of the students"), note))
    return join(parts)


def _shown(drawings: list[_Drawing], drawn: dict[str, Picture], shape: str) -> list[Html]:
    figures = [figure(drawn[one.name].inline(), one.caption) for one in drawings if one.name in drawn]
    return [tag("div", *figures, class_=shape)] if figures else []


def _of_grid(number: int, grid: Grid) -> list[_Drawing]:
    last = f"_{number + 1}" if number else ""
    names = [f"{name}{last}" for name in ("heat_validation", "heat_difference", "t_validation", "t_test")]
    validated, tested = "Student's validation accuracy by T", "Student's test accuracy by T"
    pooled = "mean over seeds, bars of one sample standard deviation"
    return [
        _Drawing(names[0], partial(validation_map, names[0], grid), VALIDATION),
        _Drawing(names[1], partial(difference_map, names[1], grid), DIFFERENCE),
        _Drawing(names[2], partial(by_temperature, names[2], validated, grid, validation), f"{validated}: {pooled}."),
        _Drawing(names[3], partial(by_temperature, names[3], tested, grid, accuracy), f"{tested}: {pooled}."),
    ]


def _of_experiments(runs: list[Run]) -> list[_Drawing]:
    """The curves of each experiment's students: those of different data would share nothing but the paper."""
    experiments = list(dict.fromkeys(run.experiment for run in runs))
    groups = {name: [run for run in runs if run.experiment == name] for name in experiments}
    drawings = []
    for number, (experiment, group) in enumerate(groups.items()):
        name = f"students_{number + 1}" if number else "students"
        caption = f"{experiment}: validation accuracy of each student; seeds of one configuration alike."
        drawings.append(_Drawing(name, partial(overlay, name, group), caption))
    return drawings
