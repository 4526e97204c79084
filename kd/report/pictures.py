"""Pictures as SVG: the canvas, the axes, and the two kinds of charts. Each may have an interactive twin."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kd.report import interactive
from kd.report.interactive import STYLE, Plot
from kd.report.markup import Html, cut, join, tag

ROLES = ("teacher", "baseline", "student")
WIDTH = 420
LETTER = 7.0  # width of a letter of 12 px, about
STEPS = 6  # colours of configurations; more are dashed
SHORT = 8  # epochs of a training that has a tick at each
LOG_FROM = 20  # a ratio of the largest to the smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Picture:
    """One picture: `name` is its file's, `label` says in words what it shows, `plot` is its interactive twin."""

    name: str
    label: str
    width: float
    height: float
    body: Html
    plot: Plot | None = None

    def inline(self) -> Html:
        """For a page that holds `STYLE`: as wide as its place."""
        svg = tag("svg", self.body, **self._common())
        return svg if self.plot is None else interactive.drawn_over(svg, self.name, self.plot)

    def file(self) -> str:
        """A file of its own, with its style and a background."""
        sheet = tag("rect", width=self.width, height=self.height, class_="sheet")
        style = tag("style", Html(STYLE))
        namespace = {"xmlns": "http://www.w3.org/2000/svg", "width": f"{self.width:g}", "height": f"{self.height:g}"}
        return tag("svg", style, sheet, self.body, **namespace, **self._common()) + "\n"

    def _common(self) -> dict[str, str]:
        box = f"0 0 {self.width:g} {self.height:g}"
        return {"class": "picture", "viewBox": box, "role": "img", "aria-label": self.label}


@dataclass(frozen=True)
class Axis:
    """Where a value lies between two pixels, and which values are marked."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Line:
    """One curve: (epoch, value) in order. `kept` is the epoch whose weights the arm has.

    Its label says which arm it is, and so its colour; or it has a `step`, the number of its configuration, in a picture
    of several. Lines of one step look alike and stand once in the legend.
    """

    label: str
    points: list[tuple[int, float]]
    kept: int | None
    step: int | None = None


def role(label: str) -> str:
    """The arm whose colour a label takes: that of `teacher-2` is the teacher's."""
    name = label.partition("-")[0]
    return name if name in ROLES else "other"


def line_chart(name: str, label: str, lines: list[Line], *, percent: bool) -> Picture:
    """Draw curves over epochs, with a tooltip for each epoch."""
    styles = line_styles(lines)
    legend, top = legend_of(dict(zip([line.label for line in lines], styles, strict=True)))
    height, left = 280, 56
    values = [value for line in lines for _, value in line.points]
    epochs = sorted({epoch for line in lines for epoch, _ in line.points})
    y = value_axis(min(values), max(values), height - 44, top + 12, fraction=percent)
    x = Axis(epochs[0], epochs[-1], left + 6, WIDTH - 16, _whole_ticks(epochs[0], epochs[-1]))
    grid = [
        tag("g", tag("line", x1=left, x2=WIDTH - 10, y1=y(t), y2=y(t)), tag("text", mark, x=left - 8, y=y(t) + 4.0))
        for t, mark in zip(y.ticks, tick_texts(y, percent=percent), strict=True)
    ]
    below = [tag("text", int(t), x=x(t), y=height - 24.0) for t in x.ticks]
    below.append(tag("text", "epoch", x=(left + WIDTH) / 2, y=height - 6.0, class_="muted"))
    if y.log:
        below.append(tag("text", "logarithmic", x=left, y=height - 6.0, class_="muted start"))
    body = join(
        [
            legend,
            tag("g", *grid, class_="grid"),
            tag("g", *below, class_="below"),
            *(_curve(line, style, x, y) for line, style in zip(lines, styles, strict=True)),
            _tooltips(lines, epochs, x, (top, height - 44), percent=percent),
        ]
    )
    return Picture(name, label, WIDTH, height, body, _line_plot(lines, y, percent=percent))


def bar_chart(name: str, label: str, groups: list[str], bars: dict[str, list[float | None]]) -> Picture:
    """Draw a group of horizontal bars, 0 to 100%, for each class; `bars` has each arm's values in the groups' order."""
    legend, top = legend_of({arm: (role(arm), 0) for arm in bars}, square=True)
    left = min(150.0, 18 + LETTER * max(len(group) for group in groups))
    thick, gap = 8, 11
    group_height = thick * len(bars) + gap
    height = top + group_height * len(groups) + 30
    x = Axis(0, 1, left, WIDTH - 22, [0, 0.25, 0.5, 0.75, 1])
    grid = [tag("line", x1=x(t), x2=x(t), y1=top, y2=height - 24) for t in x.ticks]
    below = [tag("text", f"{t:.0%}", x=x(t), y=height - 8.0) for t in x.ticks]
    rows = []
    for row, group in enumerate(groups):
        y = top + row * group_height + gap / 2
        middle = y + thick * len(bars) / 2 + 4
        rows.append(tag("text", cut(group, 19), tag("title", group), x=left - 8, y=middle, class_="end"))
        if all(values[row] is None for values in bars.values()):
            rows.append(tag("text", "no test images", x=x.start + 6, y=middle, class_="muted start"))
        for number, (arm, values) in enumerate(bars.items()):
            if (value := values[row]) is not None:
                title = tag("title", f"{group}\n{arm}  {value:.2%}")
                place = {"x": x.start, "y": y + thick * number, "width": x(value) - x.start, "height": thick - 1.0}
                rows.append(tag("rect", title, **place, class_=f"bar {role(arm)}"))
    body = join([legend, tag("g", *grid, class_="grid"), tag("g", *below, class_="below"), *rows])
    roles = {arm: role(arm) for arm in bars}
    return Picture(name, label, WIDTH, height, body, interactive.bars(groups, bars, roles, height=height + 20))


def value_axis(low: float, high: float, start: float, end: float, *, fraction: bool) -> Axis:
    """Return an axis that ends on ticks around the values; a fraction's does not pass 1."""
    if low > 0 and high / low > LOG_FROM and not fraction:
        return _log_axis(low, high, start, end)
    if high - low < 1e-9 * max(1.0, abs(high)):
        pad = 0.05 if fraction else 0.1 * abs(high) or 1.0
        low, high = low - pad, high + pad
    step = _step(high - low, 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(k * step, 12) for k in range(first, last + 1)]
    if fraction:
        ticks = [t for t in ticks if 0 <= t <= 1]
        return Axis(max(first * step, 0), min(last * step, 1), start, end, ticks)
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def tick_texts(axis: Axis, *, percent: bool) -> list[str]:
    """The ticks as texts, with as many decimals as tell them apart."""
    scale, unit = (100, "%") if percent else (1, "")
    for decimals in range(0 if axis.log else 6):
        if all(abs(round(t * scale, decimals) - t * scale) < 1e-9 for t in axis.ticks):
            return [f"{t * scale:.{decimals}f}{unit}" for t in axis.ticks]
    return [f"{t * scale:g}{unit}" for t in axis.ticks]


def _log_axis(low: float, high: float, start: float, end: float) -> Axis:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [m * 10.0**d for d in decades for m in (1, 2, 5)]
    below, above = max(m for m in marks if m <= low), min(m for m in marks if m >= high)
    ticks = [m for m in marks if below <= m <= above]
    if len(ticks) > 8:
        ticks = [10.0**d for d in decades if below <= 10.0**d <= above]
    return Axis(below, above, start, end, ticks, log=True)


def _whole_ticks(low: int, high: int) -> list[float]:
    step = max(1, int(_step(high - low, 6))) if high > low else 1
    return sorted({low, *range(-(-low // step) * step, high + 1, step)} - ({low + 1} if step > 2 else set()))


def _step(span: float, count: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides the span into at most `count` parts or so."""
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= span / count * (1 - 1e-9))


def line_styles(lines: list[Line]) -> list[tuple[str, int]]:
    """Each line's colour and how it is dashed: the second of an arm's lines is dashed, and so is the seventh step."""
    roles = [role(line.label) for line in lines]
    return [
        (roles[i], roles[:i].count(roles[i]) % 4) if line.step is None else step_style(line.step)
        for i, line in enumerate(lines)
    ]


def step_style(number: int) -> tuple[str, int]:
    """Colour and dashes of the configuration of this number."""
    return f"step-{number % STEPS}", number // STEPS % 4


def legend_of(styles: dict[str, tuple[str, int]], *, square: bool = False) -> tuple[Html, int]:
    """The legend's rows, from each label's colour and dashes, and the height at which it ends."""
    items, x, y = [], 12.0, 16
    for label, (colour, dash) in styles.items():
        width = 34 + LETTER * len(label) + 14
        if x + width > WIDTH and x > 12:
            x, y = 12.0, y + 18
        style = f"{colour} dash-{dash}"
        if square:
            key = tag("rect", x=x + 10, y=y - 9, width=12, height=10, class_=f"bar {style}")
        else:
            key = tag("line", x1=x, x2=x + 26, y1=y - 4, y2=y - 4, class_=f"curve {style}")
        items += [key, tag("text", label, x=x + 32, y=y)]
        x += width
    return tag("g", *items, class_="legend"), y + 10


def _curve(line: Line, look: tuple[str, int], x: Axis, y: Axis) -> Html:
    places = [(x(epoch), y(value)) for epoch, value in line.points]
    style = f"{look[0]} dash-{look[1]}"
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    dots = places if len(places) <= 10 else []
    kept = [place for (epoch, _), place in zip(line.points, places, strict=True) if epoch == line.kept]
    return tag(
        "g",
        tag("polyline", points=path, class_=f"curve {style}"),
        *(tag("circle", cx=a, cy=b, r=2.5, class_=f"dot {style}") for a, b in dots),
        *(tag("circle", cx=a, cy=b, r=5.0, class_=f"kept {style}") for a, b in kept),
    )


def _line_plot(lines: list[Line], y: Axis, *, percent: bool) -> Plot:
    """The curves, and a ring around each kept epoch."""
    data: list[dict[str, Any]] = []
    for line, (colour, dash) in zip(lines, line_styles(lines), strict=True):
        xs, ys = [epoch for epoch, _ in line.points], [value for _, value in line.points]
        drawn = interactive.curve(line.label, colour, [*xs], [*ys], number=dash, percent=percent)
        again = any(one.get("name") == drawn["name"] for one in data)
        data.append(drawn | {"legendgroup": drawn["name"], "showlegend": not again})
        if line.kept in xs:
            edge = {"color": interactive.COLOURS[colour], "width": 2.2}
            ring = {"color": interactive.COLOURS["sheet"], "size": 10, "line": edge}
            place = {"x": [line.kept], "y": [ys[xs.index(line.kept)]], "marker": ring}
            ring = {"type": "scatter", "mode": "markers", "hoverinfo": "skip", "showlegend": False}
            data.append(ring | {"legendgroup": drawn["name"], **place})
    marks: dict[str, Any] = {"type": "log", "tickvals": [*y.ticks], "ticktext": tick_texts(y, percent=False)}
    upright = interactive.axis(percent=percent, **(marks if y.log else {}))
    epochs = {epoch for line in lines for epoch, _ in line.points}
    # plotly would mark half epochs of a short training, and name them as whole ones
    whole: dict[str, Any] = {"tickformat": "d"} | ({"dtick": 1} if max(epochs) - min(epochs) < SHORT else {})
    across = interactive.axis("epoch", **whole)
    return interactive.plot(data, height=320, hovermode="x unified", xaxis=across, yaxis=upright)


def _tooltips(lines: list[Line], epochs: list[int], x: Axis, span: tuple[float, float], *, percent: bool) -> Html:
    """For each epoch an invisible strip that says the values of all curves."""
    strips, by_epoch = [], [(line.label, dict(line.points)) for line in lines]
    for i, epoch in enumerate(epochs):
        left = (x(epochs[i - 1]) + x(epoch)) / 2 if i else x.start - 6
        right = (x(epoch) + x(epochs[i + 1])) / 2 if i + 1 < len(epochs) else x.end + 6
        said = [f"{label}  {at[epoch]:{'.2%' if percent else '.4g'}}" for label, at in by_epoch if epoch in at]
        title = tag("title", "\n".join([f"epoch {epoch}", *said]))
        strips.append(tag("rect", title, x=left, y=span[0], width=right - left, height=span[1] - span[0]))
    return tag("g", *strips, class_="strips")
