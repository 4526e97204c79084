"""Reliability diagrams: how often an arm is right where it says how sure it is (Guo et al. 2017)."""

import math

from kd.report import interactive
from kd.report.arm import Arm, Bin
from kd.report.confusion import file_name
from kd.report.interactive import Plot
from kd.report.markup import Html, join, tag
from kd.report.pictures import Axis, Picture, role
from kd.report.read import Run

WIDTH, LEFT, TOP, SIDE, STRIP = 328.0, 56.0, 26.0, 250.0, 44.0  # pixels; the strip shows the images' shares
TICKS = (0, 0.25, 0.5, 0.75, 1)
NOTE = (
    "Test images by the probability of the predicted class: above the diagonal an arm is right more often than it "
    "says, below it less often. A bar is the paler the fewer images it has; its ring stands at their mean confidence. "
    "The strip below has each bin's share of the images. ECE: the rings' mean distance to the diagonal, each weighted "
    "by that share."
)


def reliability_pictures(run: Run) -> list[Picture]:
    """One diagram for each arm whose result has the bins."""
    return [_diagram(arm) for arm in run.arms.values() if arm.test.reliability]


def reliability(run: Run, drawn: dict[str, Picture]) -> Html | None:
    """The diagrams beside each other."""
    shown = [
        tag("div", _head(arm), tag("div", drawn[name].inline(), class_="scroll"))
        for arm in run.arms.values()
        if (name := _name(arm)) in drawn
    ]
    return join([tag("div", *shown, class_="three"), tag("p", NOTE, class_="note")]) if shown else None


def _head(arm: Arm) -> Html:
    ece = tag("span", f" ECE {arm.test.ece:.4f}", class_="muted")
    return tag("h3", tag("span", arm.name, class_=f"arm {role(arm.name)}"), ece)


def _name(arm: Arm) -> str:
    return f"reliability_{file_name(arm.name)}"


def _diagram(arm: Arm) -> Picture:
    bins, images = arm.test.reliability, sum(one.n for one in arm.test.reliability)
    x = Axis(0, 1, LEFT, LEFT + SIDE, TICKS)
    y = Axis(0, 1, TOP + SIDE, TOP, TICKS)
    strip = TOP + SIDE + 12
    below = strip + STRIP
    grid = [
        tag("g", tag("line", x1=x(0), x2=x(1), y1=y(t), y2=y(t)), tag("text", f"{t:.0%}", x=LEFT - 8, y=y(t) + 4))
        for t in y.ticks
    ]
    marks = [tag("text", f"{t:.0%}", x=x(t), y=below + 17) for t in x.ticks]
    body = join(
        [
            tag("text", f"{arm.name}, ECE {arm.test.ece:.4f}", x=LEFT, y=16),
            tag("g", *grid, class_="grid"),
            *(_bar(arm, number, one, images, x, y) for number, one in enumerate(bins) if one.n),
            tag("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), class_="mark"),
            *(_ring(arm, one, x, y) for one in bins if one.n),
            *(_share(number, len(bins), one, images, x, below) for number, one in enumerate(bins) if one.n),
            tag("line", x1=x(0), x2=x(1), y1=below, y2=below, class_="frame"),
            tag("text", "images", x=LEFT - 8, y=below, class_="muted end"),
            tag("g", *marks, class_="below"),
            tag("text", "confidence", x=LEFT + SIDE / 2, y=below + 36, class_="muted middle"),
        ]
    )
    label = f"Reliability of the {arm.name}: accuracy against confidence in {len(bins)} bins, ECE {arm.test.ece:.4f}"
    return Picture(_name(arm), label, WIDTH, below + 44, body, _plot(arm, images))


def _said(number: int, bins: int, one: Bin, images: int) -> str:
    return (
        f"confidence {number / bins:.0%} to {(number + 1) / bins:.0%}\n{one.n:,} images ({one.n / images:.2%})\n"
        f"mean confidence {one.confidence or 0:.2%}\naccuracy {one.accuracy or 0:.2%}"
    )


def _strength(one: Bin, images: int) -> float:
    """How opaque a bar is: the root, so that a bin of one image in a hundred can be told from one of a single image."""
    return round(0.2 + 0.6 * math.sqrt(one.n / images), 3)


def _bar(arm: Arm, number: int, one: Bin, images: int, x: Axis, y: Axis) -> Html:
    bins = len(arm.test.reliability)
    left, right, top = x(number / bins), x((number + 1) / bins), y(one.accuracy or 0)
    place = {"x": left + 0.5, "y": top, "width": right - left - 1, "height": y(0) - top}
    return tag(
        "rect",
        tag("title", _said(number, bins, one, images)),
        **place,
        class_=f"bar {role(arm.name)}",
        fill_opacity=_strength(one, images),
    )


def _ring(arm: Arm, one: Bin, x: Axis, y: Axis) -> Html:
    return tag("circle", cx=x(one.confidence or 0), cy=y(one.accuracy or 0), r=3.5, class_=f"kept {role(arm.name)}")


def _share(number: int, bins: int, one: Bin, images: int, x: Axis, below: float) -> Html:
    left, right, high = x(number / bins), x((number + 1) / bins), max(1.0, STRIP * one.n / images)
    place = {"x": left + 0.5, "y": below - high, "width": right - left - 1, "height": high}
    return tag("rect", tag("title", _said(number, bins, one, images)), **place, class_="share")


def _plot(arm: Arm, images: int) -> Plot:
    bins = arm.test.reliability
    full = [(number, one) for number, one in enumerate(bins) if one.n]
    middles = [(number + 0.5) / len(bins) for number, _ in full]
    said = [_said(number, len(bins), one, images).replace("\n", "<br>") for number, one in full]
    strengths = [_strength(one, images) for _, one in full]
    colour = interactive.COLOURS[role(arm.name)]
    bar = {"type": "bar", "x": middles, "width": 0.94 / len(bins), "customdata": said, "showlegend": False}
    bar["hovertemplate"] = "%{customdata}<extra></extra>"
    ring = {"color": interactive.COLOURS["sheet"], "size": 7, "line": {"color": colour, "width": 2}}
    hidden = {"type": "scatter", "showlegend": False, "hoverinfo": "skip"}
    dots = {"color": interactive.COLOURS["muted"], "width": 1, "dash": "dot"}
    data = [
        bar | {"y": [one.accuracy for _, one in full], "marker": {"color": colour, "opacity": strengths}},
        hidden | {"x": [0, 1], "y": [0, 1], "mode": "lines", "line": dots},
        hidden
        | {"x": [one.confidence for _, one in full], "y": [one.accuracy for _, one in full]}
        | {"mode": "markers", "marker": ring, "cliponaxis": False},
        bar
        | {"y": [one.n / images for _, one in full], "yaxis": "y2"}
        | {"marker": {"color": interactive.COLOURS["muted"]}},
    ]
    return interactive.plot(
        data,
        height=380,
        margin={"l": 52, "r": 24, "t": 26, "b": 40},  # on the right half of "100%"
        barmode="overlay",
        xaxis=interactive.axis("confidence", percent=True, range=[0, 1], anchor="y2", tickvals=TICKS),
        yaxis=interactive.axis(percent=True, range=[0, 1], domain=[0.2, 1], tickvals=TICKS),
        yaxis2=interactive.axis("images", percent=True, range=[0, 1], domain=[0, 0.15], nticks=3),
    )
