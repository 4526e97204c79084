"""Parallel coordinates: every run is one line across its settings and what it reached."""

import math
from dataclasses import dataclass

from kd.report import interactive
from kd.report.interactive import COLOURS, Plot
from kd.report.markup import Html, cut, join, tag
from kd.report.pictures import Axis, Picture, tick_texts, value_axis
from kd.report.read import Run
from kd.report.varied import TOLD, short_names, varied

WIDTH, HEIGHT, SIDE, TOP, FOOT = 900, 320, 70, 40, 18
LETTERS = 14  # of a method's or an experiment's name
HEADING = 18  # letters of an axis' title
NAMED = 20  # values up to which all of an axis are named


@dataclass(frozen=True)
class _Choice:
    """A setting: equally spaced places, one for each value that occurs."""

    title: str
    names: list[str]
    places: list[int]


@dataclass(frozen=True)
class _Measure:
    """A result, an accuracy or a difference of two, as a fraction."""

    title: str
    values: list[float]
    signed: bool = False


#: one upright axis: a setting or a result
Upright = _Choice | _Measure


def parallel(name: str, runs: list[Run], names: list[str]) -> Picture | None:
    """Draw all runs, blue where the student is above the baseline. None of fewer than two runs.

    A result that not every run has is left out (`left_out`), and so is a setting that all of them share.
    """
    found = _measures(runs)
    measures = {
        title: [value for value in values if value is not None] for title, values in found.items() if None not in values
    }
    if len(runs) < 2 or not measures:
        return None
    axes: list[Upright] = [choice for choice in _choices(runs) if len(choice.names) > 1]
    axes += [_Measure(title, values, title == "difference") for title, values in measures.items()]
    step = (WIDTH - 2 * SIDE) / max(len(axes) - 1, 1)
    rails = [_rail(one) for one in axes]
    body = []
    for number, run in enumerate(runs):
        heights = [rail(_place(one, number)) for one, rail in zip(axes, rails, strict=True)]
        path = " ".join(f"{SIDE + step * i:.1f},{height:.1f}" for i, height in enumerate(heights))
        said = [names[number], *(f"{one.title}  {_value(one, number)}" for one in axes)]
        body.append(tag("polyline", tag("title", "\n".join(said)), points=path, class_=f"run {_sign(run)}"))
    body += [_upright(one, rail, SIDE + step * i) for i, (one, rail) in enumerate(zip(axes, rails, strict=True))]
    label = "Every run as a line across its settings and results"
    return Picture(name, label, WIDTH, HEIGHT, join(body), _twin(axes, runs))


def left_out(runs: list[Run]) -> list[str]:
    """The results that some runs have and others have not."""
    return [title for title, values in _measures(runs).items() if None in values and set(values) != {None}]


def _upright(one: Upright, rail: Axis, x: float) -> Html:
    marks = [
        tag("text", cut(mark, LETTERS), tag("title", mark), x=x - 7, y=rail(tick) + 4.0, class_="muted end halo")
        for tick, mark in zip(rail.ticks, _marks(one, rail), strict=True)
    ]
    line = tag("line", x1=x, x2=x, y1=rail.start, y2=rail.end, class_="upright")
    heading = tag("text", cut(_heading(one), HEADING), tag("title", _heading(one)), x=x, y=16.0, class_="middle")
    return tag("g", line, heading, *marks)


def _heading(one: Upright) -> str:
    return f"{one.title}, points" if isinstance(one, _Measure) and one.signed else one.title


def _place(one: Upright, number: int) -> float:
    return one.places[number] if isinstance(one, _Choice) else one.values[number]


def _choices(runs: list[Run]) -> list[_Choice]:
    found: dict[str, list[object]] = {
        "experiment": [run.experiment for run in runs],
        "method": [str(run.method.get("name")) for run in runs],
        "T": [run.method.get("temperature") for run in runs],
        "alpha": [run.method.get("alpha") for run in runs],
        "seed": [run.seed for run in runs],
    }
    more = _more(runs)
    names = short_names(list(more))
    others = [_choice(names[key], [_number(value) for value in values]) for key, values in more.items()]
    return [*(_choice(title, values) for title, values in found.items()), *others]


def _more(runs: list[Run]) -> dict[str, list[str | None]]:
    """The other settings in which the runs differ, if these are few enough for an axis each."""
    found = varied(runs)
    return found if len(found) <= TOLD else {}


def without_axis(runs: list[Run]) -> int:
    """How many settings differ between the runs and are not drawn."""
    return len(varied(runs)) - len(_more(runs))


def _number(value: str | None) -> object:
    """The number that a setting is; words stay words."""
    try:
        number = float(value or "nan")
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def _choice(title: str, values: list[object]) -> _Choice:
    """Numbers by size, words by their first occurrence; what a run does not have below them."""
    known = list(dict.fromkeys(value for value in values if value is not None))
    if all(isinstance(value, int | float) for value in known):
        known.sort(key=lambda value: float(str(value)))
    order = [*([None] if None in values else []), *known]
    names = ["-" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in order]
    return _Choice(title, names, [order.index(value) for value in values])


def _measures(runs: list[Run]) -> dict[str, list[float | None]]:
    students = [run.arms.get("student") for run in runs]
    return {
        "validation": [arm.val_accuracy if arm else None for arm in students],
        "test": [arm.test.accuracy if arm else None for arm in students],
        "difference": [run.change for run in runs],
    }


def _rail(one: Upright) -> Axis:
    if isinstance(one, _Measure):
        return value_axis(min(one.values), max(one.values), HEIGHT - FOOT, TOP, fraction=not one.signed)
    every = -(-len(one.names) // NAMED)
    return Axis(0, len(one.names) - 1, HEIGHT - FOOT, TOP, [float(i) for i in range(0, len(one.names), every)])


def _marks(one: Upright, rail: Axis) -> list[str]:
    if isinstance(one, _Choice):
        return [one.names[int(tick)] for tick in rail.ticks]
    if one.signed:
        return ["0" if abs(tick) < 1e-12 else f"{100 * tick:+.3g}" for tick in rail.ticks]
    return tick_texts(rail, percent=True)


def _value(one: Upright, number: int) -> str:
    if isinstance(one, _Choice):
        return one.names[one.places[number]]
    return f"{100 * one.values[number] + 0.0:+.2f} points" if one.signed else f"{one.values[number]:.2%}"


def _sign(run: Run) -> str:
    change = round(run.change or 0, 12)
    return "hit" if change > 0 else "miss" if change < 0 else "none"


def _twin(axes: list[Upright], runs: list[Run]) -> Plot:
    dimensions: list[dict[str, object]] = []
    for one in axes:
        if isinstance(one, _Choice):
            marks = {"tickvals": list(range(len(one.names))), "ticktext": [interactive.plain(n) for n in one.names]}
            dimensions.append({"label": interactive.plain(one.title), "values": one.places, **marks})
        else:
            unit = _heading(one) if one.signed else f"{one.title}, %"
            form = "+.2f" if one.signed else ".2f"
            dimensions.append({"label": unit, "values": [round(100 * v, 10) for v in one.values], "tickformat": form})
    signs = [{"miss": -1, "none": 0, "hit": 1}[_sign(run)] for run in runs]
    scale = [[0, COLOURS["miss"]], [0.5, COLOURS["muted"]], [1, COLOURS["hit"]]]
    trace = {
        "type": "parcoords",
        "dimensions": dimensions,
        "line": {"color": signs, "cmin": -1, "cmax": 1, "colorscale": scale},
        "labelfont": {"color": COLOURS["ink"], "size": 12},
        "tickfont": {"color": COLOURS["ink"], "size": 11, "shadow": f"0 0 3px {COLOURS['sheet']}"},
        "rangefont": {"color": COLOURS["muted"], "size": 10},
        "unselected": {"line": {"color": COLOURS["line"], "opacity": 0.6}},
    }
    return interactive.plot([trace], height=HEIGHT + 40, margin={"l": 70, "r": 70, "t": 60, "b": 24})
