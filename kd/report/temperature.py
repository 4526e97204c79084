"""Accuracy against temperature: a line for each alpha, seeds pooled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kd.report import interactive
from kd.report.configurations import Grid, Spread
from kd.report.interactive import COLOURS, Plot
from kd.report.markup import Html, join, tag
from kd.report.pictures import LETTER, WIDTH, Axis, Picture, legend_of, step_style, tick_texts, value_axis
from kd.report.read import Run

HEIGHT, LEFT, FOOT = 280, 56, 44


@dataclass(frozen=True)
class _Line:
    """One alpha's values by temperature, in order, and the line's colour and dashes."""

    label: str
    look: tuple[str, int]
    points: list[tuple[float, Spread]]

    @property
    def style(self) -> str:
        return f"{self.look[0]} dash-{self.look[1]}"


def by_temperature(name: str, label: str, grid: Grid, of: Callable[[list[Run]], Spread | None]) -> Picture | None:
    """Draw means with bars of one standard deviation. None without two temperatures that have a value.

    of: what is shown of a cell's runs, an accuracy in [0, 1].
    """
    lines = _lines(grid, of)
    temperatures = sorted({temperature for line in lines for temperature, _ in line.points})
    if len(temperatures) < 2:
        return None
    legend, top = legend_of({line.label: line.look for line in lines})
    ends = [one.mean + side * (one.sd or 0) for line in lines for _, one in line.points for side in (-1, 1)]
    y = value_axis(max(min(ends), 0), min(max(ends), 1), HEIGHT - FOOT, top + 12, fraction=True)
    x = Axis(temperatures[0], temperatures[-1], LEFT + 16, WIDTH - 26, temperatures, log=True)
    grid_lines = [
        tag("g", tag("line", x1=LEFT, x2=WIDTH - 10, y1=y(t), y2=y(t)), tag("text", mark, x=LEFT - 8, y=y(t) + 4.0))
        for t, mark in zip(y.ticks, tick_texts(y, percent=True), strict=True)
    ]
    below = [tag("text", f"{t:g}", x=x(t), y=HEIGHT - 24.0) for t in _apart(x)]
    below.append(tag("text", "temperature T, logarithmic", x=(LEFT + WIDTH) / 2, y=HEIGHT - 6.0, class_="muted"))
    body = [legend, tag("g", *grid_lines, class_="grid"), tag("g", *below, class_="below")]
    body += [_drawn(line, x, y) for line in lines]
    return Picture(name, f"{label}: {grid.title}", WIDTH, HEIGHT, join(body), _twin(lines, _apart(x)))


def _lines(grid: Grid, of: Callable[[list[Run]], Spread | None]) -> list[_Line]:
    lines = []
    for number, alpha in enumerate(grid.alphas):
        cells = ((t, grid.cells.get((t, alpha))) for t in grid.temperatures)
        points = [(t, spread) for t, runs in cells if runs and (spread := of(runs))]
        if points:
            lines.append(_Line(f"alpha = {alpha:g}", step_style(number), points))
    return lines


def _said(line: _Line, temperature: float, spread: Spread) -> list[str]:
    sd = "" if spread.sd is None else f" ± {100 * spread.sd:.2f}"
    return [f"T = {temperature:g}, {line.label}", f"{100 * spread.mean:.2f}{sd} %, n = {spread.n}"]


def _drawn(line: _Line, x: Axis, y: Axis) -> Html:
    path = " ".join(f"{x(t):.1f},{y(spread.mean):.1f}" for t, spread in line.points)
    parts = [tag("polyline", points=path, class_=f"curve {line.style}")]
    for t, spread in line.points:
        if spread.sd:
            low, high = y(max(spread.mean - spread.sd, y.low)), y(min(spread.mean + spread.sd, y.high))
            parts.append(tag("line", x1=x(t), x2=x(t), y1=low, y2=high, class_=f"whisker {line.style}"))
        title = tag("title", "\n".join(_said(line, t, spread)))
        parts.append(tag("circle", title, cx=x(t), cy=y(spread.mean), r=4.0, class_=f"dot {line.style}"))
    return tag("g", *parts)


def _apart(axis: Axis) -> list[float]:
    """The ticks whose labels do not touch."""
    kept: list[float] = []
    for tick in axis.ticks:
        if not kept or axis(tick) - axis(kept[-1]) > LETTER * len(f"{tick:g}") + 6:
            kept.append(tick)
    return kept


def _twin(lines: list[_Line], marked: list[float]) -> Plot:
    data = []
    for line in lines:
        colour = COLOURS[line.look[0]]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": line.label,
                "x": [t for t, _ in line.points],
                "y": [spread.mean for _, spread in line.points],
                "error_y": {"array": [spread.sd or 0 for _, spread in line.points], "thickness": 1.4, "width": 4},
                "line": {"color": colour, "width": 2.2, "dash": interactive.DASHES[line.look[1]]},
                "marker": {"color": colour, "size": 7},
                "text": ["<br>".join(_said(line, t, spread)) for t, spread in line.points],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    ticks: dict[str, Any] = {"tickvals": marked, "ticktext": [f"{t:g}" for t in marked]}
    across = interactive.axis("temperature T, logarithmic", type="log", **ticks)
    return interactive.plot(data, height=320, xaxis=across, yaxis=interactive.axis(percent=True), showlegend=True)
