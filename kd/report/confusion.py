"""What was taken for what: the confusion matrix as a picture, or the commonest confusions of many classes."""

from kd.report import interactive
from kd.report.markup import Html, cut, join, percent, table, tag
from kd.report.pictures import LETTER, Picture
from kd.report.read import Run

READABLE = 20  # classes up to which a matrix can be read
COMMONEST = 15
CELL = 31
LETTERS = 11  # of a class's name


def matrix(run: Run, arm: str, counts: list[list[int]], *, rule: str | None = None) -> Picture:
    """Draw a confusion matrix: hits blue, confusions orange, the stronger the larger their share of the row.

    counts[i][j]: images of class i that the arm called j, after a `rule` of bias correction if one is named.
    """
    names = [run.class_name(i) for i in range(len(counts))]
    longest = max(len(name) for name in names)
    left = 34 + LETTER * min(longest, LETTERS)
    upright = longest > 3
    top = 30 + (LETTER * min(longest, LETTERS) if upright else 16)
    size = CELL * len(counts)
    middle_x, middle_y = left + size / 2, top + size / 2
    body: list[Html | None] = [
        tag("text", "predicted", x=middle_x, y=16, class_="muted middle"),
        tag("text", "true", x=14, y=middle_y, transform=f"rotate(-90 14 {middle_y:g})", class_="muted middle"),
    ]
    for i, name in enumerate(names):
        at = CELL * (i + 0.5)
        place: dict[str, object] = {"x": left + at, "y": top - 8}
        if upright:
            place = {"x": left + at + 4, "y": top - 6, "transform": f"rotate(-90 {left + at + 4:g} {top - 6:g})"}
        body.append(
            tag("text", cut(name, LETTERS), tag("title", name), **place, class_="start" if upright else "middle")
        )
        body.append(tag("text", cut(name, LETTERS), tag("title", name), x=left - 8, y=top + at + 4, class_="end"))
        body += [_cell(names, counts, i, j, left + CELL * j, top + CELL * i) for j in range(len(counts))]
    body.append(tag("rect", x=left, y=top, width=size, height=size, class_="frame"))
    name = f"confusion_{file_name(arm)}" + (f"_{file_name(rule)}" if rule else "")
    after = f", its bias corrected ({rule})" if rule else ""
    label = f"Confusion matrix of the {arm}{after}: rows are true classes, columns predicted ones"
    width, height = left + size + 8, top + size + 8
    return Picture(name, label, width, height, join(body), interactive.matrix(counts, names, height=height))


def commonest(run: Run, counts: list[list[int]]) -> Html:
    """The most frequent confusions as a list."""
    found = top_confusions(counts)
    if not found:
        return tag("p", "No image was taken for another class.")
    rows: list[list[object]] = [
        [f"{run.class_name(i)} → {run.class_name(j)}", f"{count:,}", percent(share)] for count, share, i, j in found
    ]
    return table(["true → predicted", "images", "share of class"], rows, class_="small")


def top_confusions(counts: list[list[int]], limit: int = COMMONEST) -> list[tuple[int, float, int, int]]:
    """(images, share of the true class, true class, predicted class), the most frequent first."""
    found = [
        (count, count / sum(row), i, j)
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if count and i != j
    ]
    return sorted(found, key=lambda entry: (-entry[0], -entry[1], entry[2:]))[:limit]


def file_name(arm: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in arm)


def _cell(names: list[str], counts: list[list[int]], i: int, j: int, x: float, y: float) -> Html | None:
    count, images = counts[i][j], sum(counts[i])
    if not count:
        return None
    share = count / images
    # the root, so that one image in a hundred can be seen
    strength = share**0.5 if i == j else min(1.0, 0.12 + share**0.5)
    title = f"true {names[i]}, predicted {names[j]}\n{count:,} of {images:,} ({share:.2%})"
    kind = "hit" if i == j else "miss"
    return tag(
        "g",
        tag("title", title),
        tag("rect", x=x, y=y, width=CELL, height=CELL, class_=kind, fill_opacity=strength),
        tag(
            "text",
            f"{count}",
            x=x + CELL / 2,
            y=y + CELL / 2 + 4,
            class_="middle strong" if strength > 0.85 else "middle",
        ),
    )
