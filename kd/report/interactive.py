"""The interactive twins of pictures: plain dictionaries that plotly.js draws, and the page's part that makes it do so.

Colours are those of picture.css in its light scheme; page.js puts the reader's scheme in their place. Every text that
comes from a run goes through `plain`: plotly reads markup in texts, and names of classes are anybody's.
"""

import base64
import hashlib
import json
import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from kd.report.markup import Html, cut, join, tag, text

#: {"data": [traces], "layout": {...}}
Plot = dict[str, Any]

STYLE = Path(__file__).with_name("picture.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
COLOURS = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", STYLE.partition("}")[0]))
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif"
CLEAR = "rgba(0,0,0,0)"
STRONG = 0.85  # of a colour, from which letters on it are light
LETTERS = 11  # of a name beside a matrix
DASHES = ("solid", "1px,4.5px", "9px,5px", "9px,4px,1px,4px")


def plain(value: object) -> str:
    """A text that plotly shows as it is, whatever markup it may hold."""
    return str(text(str(value)))


def plot(data: list[dict[str, Any]], *, height: float, **layout: Any) -> Plot:
    """A figure in the page's style. `layout` holds what is its own, `xaxis=axis(...)` for one."""
    base: dict[str, Any] = {
        "height": height,
        "margin": {"l": 52, "r": 14, "t": 26, "b": 40},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"family": FONT, "size": 12, "color": COLOURS["ink"]},
        "hoverlabel": {
            "bgcolor": COLOURS["sheet"],
            "bordercolor": COLOURS["line"],
            "font": {"family": FONT, "size": 12, "color": COLOURS["ink"]},
            "align": "left",
            "namelength": -1,
        },
        "modebar": {"bgcolor": CLEAR, "color": COLOURS["muted"], "activecolor": COLOURS["ink"]},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"}
        | {"maxheight": 0.9},  # of the figure, which page.js makes higher by the legend's rows
    }
    return {"data": data, "layout": base | layout}


def axis(title: str | None = None, *, percent: bool = False, **given: Any) -> dict[str, Any]:
    """An axis in the page's style; a `percent` axis shows fractions as percentages."""
    base: dict[str, Any] = {
        "gridcolor": COLOURS["line"],
        "linecolor": COLOURS["line"],
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "tickfont": {"color": COLOURS["muted"]},
    }
    if title is not None:
        base["title"] = {"text": title, "font": {"color": COLOURS["muted"]}, "standoff": 6}
    if percent:
        base["tickformat"] = "~%"
    return base | given


def places(names: list[str], letters: int = 16) -> dict[str, Any]:
    """The part of an axis that names the places 0, 1, ...: two classes of one name stay two. Long names are cut."""
    shown = [plain(cut(name, letters)) for name in names]
    return {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": shown}


def curve(
    label: str, role: str, x: list[float], y: list[float | None], *, number: int = 0, percent: bool = False
) -> dict[str, Any]:
    """One line in an arm's colour. `number` counts the lines of this role before it, and decides how it is dashed."""
    dash = "7px,4px" if role == "teacher" and not number % len(DASHES) else DASHES[number % len(DASHES)]
    return {
        "type": "scatter",
        "name": plain(label),
        "x": x,
        "y": y,
        "mode": "lines+markers" if len(x) <= 10 else "lines",
        "line": {"color": COLOURS[role], "width": 2.2, "dash": dash},
        "marker": {"color": COLOURS[role], "size": 5},
        "hovertemplate": "%{y:.2%}" if percent else "%{y:.4~g}",
    }


def bars(groups: list[str], values: dict[str, list[float | None]], roles: dict[str, str], *, height: float) -> Plot:
    """Horizontal bars, 0 to 100%: `values` has each arm's in the groups' order."""
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plain(arm),
            "x": shares,
            "y": list(range(len(groups))),
            "marker": {"color": COLOURS[roles[arm]]},
            "hovertemplate": "%{x:.2%}",
        }
        for arm, shares in values.items()
    ]
    return plot(
        data,
        height=height,
        barmode="group",
        bargap=0.3,
        hovermode="y unified",
        xaxis=axis(percent=True, range=[0, 1.02], tickvals=[0, 0.25, 0.5, 0.75, 1]),
        yaxis=axis(**places(groups), range=[len(groups) - 0.5, -0.5], showgrid=False),
    )


def matrix(counts: list[list[int]], names: list[str], *, height: float) -> Plot:
    """A confusion matrix: hits blue, confusions orange, the stronger the larger their share of the row.

    counts (C, C): images of class i that were called j.
    """
    strength, said = [], []
    for i, row in enumerate(counts):
        images = sum(row)
        shares = [count / images if images else 0.0 for count in row]
        # the root, so that one image in a hundred can be seen
        strength.append([math.copysign(share**0.5, 1 if i == j else -1) for j, share in enumerate(shares)])
        said.append(
            [
                f"true {plain(names[i])}, predicted {plain(names[j])}<br>{count:,} of {images:,} ({shares[j]:.2%})"
                for j, count in enumerate(row)
            ]
        )
    data = {
        "type": "heatmap",
        "z": strength,
        "zmin": -1,
        "zmax": 1,
        "customdata": said,
        "hovertemplate": "%{customdata}<extra></extra>",
        "colorscale": [[0, COLOURS["miss"]], [0.5, COLOURS["sheet"]], [1, COLOURS["hit"]]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
    }
    upright = max(map(len, names)) > 3
    shown: dict[str, Any] = {"showgrid": False, "mirror": True, **places(names, LETTERS)}
    places_of = [(j, i, str(count)) for i, row in enumerate(counts) for j, count in enumerate(row) if count]
    said_over = over_cells([(j, i, word, abs(strength[i][j]) > STRONG) for j, i, word in places_of])
    return plot(
        [data, said_over],
        height=height,
        xaxis=axis("predicted", **shown, side="top", tickangle=-90 if upright else 0),
        yaxis=axis("true", **shown, range=[len(names) - 0.5, -0.5]),
        margin={"l": 40, "r": 10, "t": 46, "b": 14},
    )


def over_cells(cells: list[tuple[int, int, str, bool]]) -> dict[str, Any]:
    """Texts in a heat map: column, row, text, and whether the colour below is strong."""
    columns, rows, words, strong = (list(part) for part in zip(*cells, strict=True)) if cells else ([], [], [], [])
    colours = [COLOURS["sheet"] if one else COLOURS["ink"] for one in strong]
    font = {"color": colours, "size": 12}
    where = {"x": columns, "y": rows, "text": words, "textfont": font}
    return {"type": "scatter", "mode": "text", "hoverinfo": "skip", "showlegend": False} | where


def drawn_over(svg: Html, name: str, twin: Plot) -> Html:
    """The picture, and in a box with it what page.js draws in its place."""
    return tag("div", svg, _data(twin), class_="plotted", data_name=name)


def scripts() -> Html:
    """What a page with twins ends with: plotly.js, the palette and the page's own script."""
    shown = {colour: f"--{name}" for name, colour in reversed(COLOURS.items())}
    palette = tag("script", Html(_safe(shown)), type="application/json", id="palette")
    return join([palette, tag("script", Html(_plotly())), tag("script", Html(SCRIPT))])


def script_policy(body: str) -> str:
    """The part of the page's policy that lets run these two scripts, and no other that a name may smuggle in.

    plotly draws parallel coordinates with WebGL programs that it compiles as it goes: only their page allows that.
    """
    hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in (_plotly(), SCRIPT)]
    compiled = " 'unsafe-eval'" if '"type":"parcoords"' in body else ""
    return "script-src " + " ".join(f"'sha256-{code}'" for code in hashes) + compiled


def _plotly() -> str:
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def _data(content: Plot) -> Html:
    return tag("script", Html(_safe(content)), type="application/json")


def _safe(content: object) -> str:
    """JSON that nothing in a page can end: no text of it is markup. Raises `ValueError` for NaN and infinity."""
    written = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
