"""Markup that escapes by itself, and numbers as people read them."""

import re
from html import escape

DASH = "-"

#: what XML cannot hold, escaped or not
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Html(str):
    """Text that is markup already; `tag` escapes every other."""

    __slots__ = ()


def text(value: object) -> Html:
    """Return any value as markup: numbers short, text escaped."""
    if isinstance(value, Html):
        return value
    shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return Html(escape(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", shown)))


def tag(_name: str, *children: object, **attributes: object) -> Html:
    """Return an element. `class_` gives class, `text_anchor` gives text-anchor; None leaves a child or one out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{_name}{given}>{join(children)}</{_name}>")


def join(children: object) -> Html:
    assert isinstance(children, list | tuple)
    return Html("".join(text(child) for child in children if child is not None))


def measured(value: float | None, form: str, scale: float = 1) -> Html:
    """A number in a readable form that carries the number itself; a dash for None."""
    if value is None:
        return Html(DASH)
    return tag("data", format(value * scale, form), value=repr(value))


def percent(value: float | None) -> Html:
    return measured(value, ".2%")


def points(value: float | None) -> Html:
    """A difference of accuracies in percentage points, with its sign."""
    return measured(None if value is None else round(value, 12) + 0.0, "+.2f", 100)


def short(count: int | None) -> Html:
    """A large count in three or four digits: 24.3 M."""
    if count is None:
        return Html(DASH)
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return tag("data", f"{count / size:.1f} {unit}", value=count)
    return tag("data", count, value=count)


def table(head: list[object], rows: list[list[object]], *, class_: str | None = None) -> Html:
    """A table inside a box of its own, which scrolls where it does not fit. The first cell of a row names it."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body), class_=class_), class_="scroll")


def figure(picture: Html, caption: str) -> Html:
    return tag("figure", tag("div", picture, class_="scroll"), tag("figcaption", caption))


def breakable(words: str) -> Html:
    """A long expression that may be wrapped after its punctuation: `MLP(hidden=[800, 800])`."""
    return Html(re.sub(r"([(=,])", r"\1<wbr>", text(words)))


def cut(name: str, length: int) -> str:
    """A name that is too long for its place, with an ellipsis."""
    return name if len(name) <= length else name[: length - 1] + "…"
