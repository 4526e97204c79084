"""Temperature against alpha: one cell per pair, seeds pooled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kd.report import interactive
from kd.report.configurations import Grid, Spread, change, validation
from kd.report.interactive import COLOURS, Plot
from kd.report.markup import Html, join, tag
from kd.report.pictures import LETTER, Picture
from kd.report.read import Run

CELL_WIDTH, CELL_HEIGHT = 74, 46
TOP, BELOW = 12, 48
READABLE = 6  # temperatures up to which two maps stand side by side
STRONG = 0.72  # of a colour, from which letters on it are light
FAINT = 0.12  # the least of a colour that a cell has


@dataclass(frozen=True)
class _Cell:
    """What a cell shows. `strength` is -1 to 1: of orange below 0, of blue above."""

    column: int
    row: int
    value: str
    seeds: int
    strength: float
    tooltip: list[str]
    best: bool


def validation_map(name: str, grid: Grid) -> Picture | None:
    """The student's validation accuracy, by which T and alpha are chosen; None without validation."""
    found = _spreads(grid, validation)
    values = [spread.mean for spread in found.values()]
    if not found:
        return None
    low, span = min(values), max(values) - min(values)
    strengths = {at: FAINT + (1 - FAINT) * ((one.mean - low) / span if span else 0.5) for at, one in found.items()}
    cells = _cells(grid, found, strengths, "validation accuracy", signed=False)
    return _map(name, f"Validation accuracy of the student by T and alpha: {grid.title}", grid, cells)


def difference_map(name: str, grid: Grid) -> Picture | None:
    """Test accuracy of the student minus that of the baseline; None where no run has both."""
    found = _spreads(grid, change)
    if not found:
        return None
    largest = max(abs(spread.mean) for spread in found.values()) or 1.0
    cells = _cells(grid, found, {at: one.mean / largest for at, one in found.items()}, "difference", signed=True)
    return _map(name, f"Test accuracy, student minus baseline, by T and alpha: {grid.title}", grid, cells)


def _spreads(grid: Grid, of: Callable[[list[Run]], Spread | None]) -> dict[tuple[float, float], Spread]:
    return {at: spread for at, runs in grid.cells.items() if (spread := of(runs))}


def _cells(
    grid: Grid,
    found: dict[tuple[float, float], Spread],
    strengths: dict[tuple[float, float], float],
    what: str,
    *,
    signed: bool,
) -> list[_Cell]:
    cells = []
    for (temperature, alpha), spread in found.items():
        value = f"{100 * spread.mean + 0.0:+.2f}" if signed else f"{spread.mean:.2%}"
        unit = " points" if signed else ""
        sd = "" if spread.sd is None else f", sd {100 * spread.sd:.2f} points"
        seeds = ", ".join(str(run.seed) for run in grid.cells[temperature, alpha])
        tooltip = [f"T = {temperature:g}, alpha = {alpha:g}", f"{what} {value}{unit}{sd}", f"seeds {seeds}"]
        column, row = grid.temperatures.index(temperature), grid.alphas.index(alpha)
        best = (temperature, alpha) in grid.best
        strength = strengths[temperature, alpha]
        cells.append(_Cell(column, row, value, spread.n, strength, tooltip, best))
    return cells


def _map(name: str, label: str, grid: Grid, cells: list[_Cell]) -> Picture:
    columns, rows = len(grid.temperatures), len(grid.alphas)
    left = 44 + LETTER * max(len(f"{alpha:g}") for alpha in grid.alphas)
    width, height = CELL_WIDTH * columns, CELL_HEIGHT * rows
    place = {(column, row): (left + CELL_WIDTH * column, TOP + CELL_HEIGHT * (rows - 1 - row)) for column in
             range(columns) for row in range(rows)}  # fmt: skip
    filled = {(cell.column, cell.row) for cell in cells}
    body = [_empty(*place[at]) for at in place if at not in filled]
    body += [_cell(cell, *place[cell.column, cell.row]) for cell in cells]
    body += [_frame(*place[cell.column, cell.row]) for cell in cells if cell.best]
    for row, alpha in enumerate(grid.alphas):
        body.append(tag("text", f"{alpha:g}", x=left - 8, y=place[0, row][1] + CELL_HEIGHT / 2 + 4, class_="end"))
    for column, temperature in enumerate(grid.temperatures):
        x = place[column, 0][0] + CELL_WIDTH / 2
        body.append(tag("text", f"{temperature:g}", x=x, y=TOP + height + 18, class_="middle"))
    x, y = left + width / 2, TOP + height / 2
    body.append(tag("text", "temperature T", x=x, y=TOP + height + 38, class_="muted middle"))
    body.append(tag("text", "alpha", x=14, y=y, transform=f"rotate(-90 14 {y:g})", class_="muted middle"))
    twin = _twin(grid, cells, filled)
    return Picture(name, label, max(left + width + 10, 300), TOP + height + BELOW, join(body), twin)


def _cell(cell: _Cell, x: float, y: float) -> Html:
    strong = " strong" if abs(cell.strength) > STRONG else ""
    middle = x + CELL_WIDTH / 2
    return tag(
        "g",
        tag("title", "\n".join(cell.tooltip)),
        tag(
            "rect",
            x=x + 1,
            y=y + 1,
            width=CELL_WIDTH - 2,
            height=CELL_HEIGHT - 2,
            stroke="var(--line)",
            class_="miss" if cell.strength < 0 else "hit",
            fill_opacity=f"{abs(cell.strength):.3f}",
        ),
        tag("text", cell.value, x=middle, y=y + CELL_HEIGHT / 2 - 2, class_=f"middle{strong}"),
        tag("text", f"n = {cell.seeds}", x=middle, y=y + CELL_HEIGHT / 2 + 14, class_=f"middle{strong}"),
    )


def _empty(x: float, y: float) -> Html:
    rect = tag("rect", x=x + 4, y=y + 4, width=CELL_WIDTH - 8, height=CELL_HEIGHT - 8, class_="empty")
    words = tag("text", "no run", x=x + CELL_WIDTH / 2, y=y + CELL_HEIGHT / 2 + 4, class_="muted middle")
    return tag("g", rect, words)


def _frame(x: float, y: float) -> Html:
    return tag("rect", x=x + 1, y=y + 1, width=CELL_WIDTH - 2, height=CELL_HEIGHT - 2, class_="best")


def _twin(grid: Grid, cells: list[_Cell], filled: set[tuple[int, int]]) -> Plot:
    columns, rows = len(grid.temperatures), len(grid.alphas)
    by_place = {(cell.column, cell.row): cell for cell in cells}
    known = [[by_place.get((column, row)) for column in range(columns)] for row in range(rows)]
    heat = {
        "type": "heatmap",
        "z": [[cell and cell.strength for cell in row] for row in known],
        "zmin": -1,
        "zmax": 1,
        "customdata": [[cell and "<br>".join(cell.tooltip) for cell in row] for row in known],
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "colorscale": [[0, COLOURS["miss"]], [0.5, COLOURS["sheet"]], [1, COLOURS["hit"]]],
        "showscale": False,
    }
    said = interactive.over_cells(
        [(c.column, c.row, f"{c.value}<br>n = {c.seeds}", abs(c.strength) > STRONG) for c in cells]
    )
    gaps = [(column, row) for column in range(columns) for row in range(rows) if (column, row) not in filled]
    empty = {
        "type": "scatter",
        "mode": "text",
        "x": [column for column, _ in gaps],
        "y": [row for _, row in gaps],
        "text": ["no run"] * len(gaps),
        "textfont": {"color": COLOURS["muted"]},
        "hoverinfo": "skip",
    }
    frames = [_box(cell.column, cell.row, COLOURS["line"], "solid", 1, 0) for cell in cells]
    frames += [_box(cell.column, cell.row, COLOURS["ink"], "solid", 2.5, 0.015) for cell in cells if cell.best]
    frames += [_box(column, row, COLOURS["line"], "dash", 1.5, 0.05) for column, row in gaps]
    return interactive.plot(
        [heat, said, *([empty] if gaps else [])],
        height=CELL_HEIGHT * rows + 96,
        xaxis=_side("temperature T", grid.temperatures),
        yaxis=_side("alpha", grid.alphas),
        shapes=frames,
        showlegend=False,
    )


def _side(title: str, values: list[float]) -> dict[str, Any]:
    marks = interactive.places([f"{value:g}" for value in values])
    return interactive.axis(title, **marks, range=[-0.5, len(values) - 0.5], showgrid=False)


def _box(column: int, row: int, colour: str, dash: str, width: float, inset: float) -> dict[str, object]:
    half = 0.5 - inset
    corners = {"x0": column - half, "x1": column + half, "y0": row - half, "y1": row + half}
    return {"type": "rect", "line": {"color": colour, "dash": dash, "width": width}, **corners}
