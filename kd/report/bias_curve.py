"""Accuracy against the bias of the omitted classes, the rules marked on it."""

from itertools import pairwise
from typing import Any

from kd.report import interactive
from kd.report.confusion import file_name
from kd.report.correction import Correction
from kd.report.interactive import Plot
from kd.report.markup import Html, cut, join, tag
from kd.report.pictures import LETTER, WIDTH, Axis, Picture, role, tick_texts, value_axis

Points = list[tuple[float, float]]
LEFT, ROW, PLOT = 56, 16, 230  # of the axis, of a rule's label, of the plot: pixels


def bias_curve(arm: str, correction: Correction, accuracy: float, omitted: str) -> Picture | None:
    """Draw the curve of an arm whose accuracy before any correction is `accuracy`; None if its result has none."""
    if len(correction.curve) < 2:
        return None
    lines = {
        omitted: [(bias, share) for bias, share, _ in correction.curve if share is not None],
        "all test images": [(bias, share) for bias, _, share in correction.curve],
    }
    marks = _marks(correction, accuracy)
    top = 30 + ROW * len(marks)
    bottom = top + PLOT
    biases = [bias for bias, _, _ in correction.curve] + [bias for bias, _ in marks.values()]
    x = _linear(min(biases), max(biases))
    values = [value for line in lines.values() for _, value in line]
    y = value_axis(min(values), max(values), bottom, top + 6, fraction=True)
    body = join(
        [
            _legend(list(lines), role(arm)),
            _axes(x, y, top, bottom),
            *(_line(points, number, role(arm), x, y) for number, points in enumerate(lines.values())),
            *(
                _mark(name, bias, values, x, y, (32 + ROW * number, bottom), role(arm))
                for number, (name, (bias, values)) in enumerate(marks.items())
            ),
            _tooltips(correction, omitted, x, (top, bottom)),
        ]
    )
    label = f"Accuracy of the {arm} on {omitted} and on all test images against the bias added to the omitted classes"
    plot = _plot(lines, marks, role(arm))
    return Picture(f"omitted_{file_name(arm)}", label, WIDTH, bottom + 44, body, plot)


def _marks(correction: Correction, accuracy: float) -> dict[str, tuple[float, list[float]]]:
    """Where each rule stands: its bias, and its accuracies on the omitted classes and on all images.

    In the order of the biases, so that no name, one below the other, crosses another rule's line.
    """
    found = {"before": (0.0, [correction.omitted_accuracy, accuracy])}
    for name, rule in correction.rules.items():
        found[name] = (rule.mean_bias, [rule.omitted_accuracy, rule.accuracy])
    ordered = sorted(found.items(), key=lambda mark: mark[1][0])
    return {name: (bias, [v for v in values if v is not None]) for name, (bias, values) in ordered}


def _linear(low: float, high: float) -> Axis:
    """Never logarithmic: a bias of 0 is what all others are compared with."""
    axis = value_axis(min(low, 0.0), max(high, 0.0), 0, 1, fraction=False)
    return Axis(min(low, 0.0), max(high, 0.0), LEFT + 6, WIDTH - 16, [t for t in axis.ticks if low <= t <= high])


def _axes(x: Axis, y: Axis, top: float, bottom: float) -> Html:
    grid = [
        tag("g", tag("line", x1=LEFT, x2=WIDTH - 10, y1=y(t), y2=y(t)), tag("text", mark, x=LEFT - 8, y=y(t) + 4.0))
        for t, mark in zip(y.ticks, tick_texts(y, percent=True), strict=True)
    ]
    below = [tag("text", f"{t:g}", x=x(t), y=bottom + 18) for t in x.ticks]
    below.append(tag("text", "added to the omitted classes' logits", x=(LEFT + WIDTH) / 2, y=bottom + 37))
    return tag("g", tag("g", *grid, class_="grid"), tag("g", *below, class_="below"))


def _line(points: Points, number: int, kind: str, x: Axis, y: Axis) -> Html:
    path = " ".join(f"{x(bias):.1f},{y(value):.1f}" for bias, value in points)
    return tag("polyline", points=path, class_=f"curve {kind} {_style(number)}")


def _mark(name: str, bias: float, values: list[float], x: Axis, y: Axis, span: tuple[float, float], kind: str) -> Html:
    """A vertical line at a rule's bias, named at its top, with a dot at each of its accuracies."""
    at, words = x(bias), f"{name} {bias:+.3g}" if name != "before" else name
    right = at + 6 + LETTER * len(words) < WIDTH
    place = {"x": at + 5 if right else at - 5, "class_": "start" if right else "end"}
    return tag(
        "g",
        tag("line", x1=at, x2=at, y1=span[0] - 8, y2=span[1], class_="mark"),
        tag("text", words, y=span[0], **place),
        *(tag("circle", cx=at, cy=y(value), r=4.0, class_=f"kept {kind}") for value in values),
    )


def _tooltips(correction: Correction, omitted: str, x: Axis, span: tuple[float, float]) -> Html:
    """For each point of the curve an invisible strip that says its values."""
    at = [x(bias) for bias, _, _ in correction.curve]
    edges = [at[0], *((one + two) / 2 for one, two in pairwise(at)), at[-1]]
    strips = []
    for (bias, share, overall), (left, right) in zip(correction.curve, pairwise(edges), strict=True):
        known = "" if share is None else f"\n{omitted}  {share:.2%}"
        title = tag("title", f"bias {bias:+.3g}{known}\nall test images  {overall:.2%}")
        strips.append(tag("rect", title, x=left, y=span[0], width=right - left, height=span[1] - span[0]))
    return tag("g", *strips, class_="strips")


def _legend(labels: list[str], kind: str) -> Html:
    items, x = [], 12.0
    for number, label in enumerate(labels):
        shown = cut(label, 28)
        items.append(tag("line", x1=x, x2=x + 26, y1=12, y2=12, class_=f"curve {kind} {_style(number)}"))
        items.append(tag("text", shown, x=x + 32, y=16))
        x += 48 + LETTER * len(shown)
    return tag("g", *items, class_="legend")


def _style(number: int) -> str:
    return f"dash-{number + 4}"


def _plot(lines: dict[str, Points], marks: dict[str, tuple[float, list[float]]], kind: str) -> Plot:
    data = [
        {**interactive.curve(label, kind, [b for b, _ in points], [v for _, v in points], number=1, percent=True)}
        | {"mode": "lines", "line": {"color": interactive.COLOURS[kind], "width": 2.2, "dash": dash}}
        for (label, points), dash in zip(lines.items(), ("solid", "9px,5px"), strict=True)
    ]
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for number, (name, (bias, values)) in enumerate(marks.items()):
        ring = {
            "color": interactive.COLOURS["sheet"],
            "size": 8,
            "line": {"color": interactive.COLOURS[kind], "width": 2},
        }
        words = interactive.plain(f"{name} {bias:+.3g}" if name != "before" else name)
        data.append(
            {"type": "scatter", "mode": "markers", "showlegend": False, "hoverinfo": "skip"}
            | {"x": [bias] * len(values), "y": values, "marker": ring}
        )
        dots = {"color": interactive.COLOURS["muted"], "width": 1, "dash": "dot"}
        high = 1 + ROW * (len(marks) - 0.5 - number) / PLOT  # up to its name, about
        shapes.append({"type": "line", "x0": bias, "x1": bias, "yref": "paper", "y0": 0, "y1": high, "line": dots})
        notes.append(
            {"x": bias, "yref": "paper", "y": 1, "yanchor": "bottom", "yshift": ROW * (len(marks) - 1 - number)}
            | {"text": words, "showarrow": False, "xanchor": "left", "xshift": 3}
        )
    return interactive.plot(
        data,
        height=PLOT + 130,
        hovermode="x unified",
        xaxis=interactive.axis("added to the omitted classes' logits"),
        yaxis=interactive.axis(percent=True),
        shapes=shapes,
        annotations=notes,
        margin={"l": 52, "r": 14, "t": 16 + ROW * len(marks), "b": 40},
    )
