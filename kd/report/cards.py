"""Test images as cards: the picture, what it is, and what the arms say of it."""

from dataclasses import dataclass

from kd.report.examples import Example
from kd.report.markup import Html, cut, join, tag
from kd.report.pictures import Picture, role
from kd.report.read import Run

SHOWN = 12  # cards of one panel
WIDTH, IMAGE, GAP, COLUMNS = 300.0, 64, 26.0, 3  # pixels of a card and, in a file, between them


@dataclass(frozen=True)
class Card:
    """One image: two lines of text, and below them its bars."""

    example: Example
    title: str
    subtitle: str
    bars: Picture


def examples(run: Run, kind: str) -> list[Example]:
    """The run's images of a kind, those only that at least one of its arms was asked about."""
    return [example for example in run.examples if example.kind == kind and arms(run, example)]


def arms(run: Run, example: Example) -> list[str]:
    """The arms that were asked about an image, in the run's order."""
    return [name for name in run.arms if name in example.logits]


def html(card: Card, bars: Html) -> Html:
    """A card of the page."""
    said = tag("div", tag("p", card.title), tag("p", card.subtitle, class_="muted"))
    return tag("div", tag("div", picture(card), said), bars, class_="card")


def picture(card: Card) -> Html:
    """The image itself, its pixels kept apart."""
    # the parser of examples.json has seen that it is base64 and nothing else
    return void("img", src=f"data:image/png;base64,{card.example.png}", alt=card.title, width=IMAGE, height=IMAGE)


def void(_name: str, **attributes: object) -> Html:
    """An element that has no end, such as img or input."""
    return Html(tag(_name, **attributes).removesuffix(f"</{_name}>"))


def sheet(name: str, label: str, cards: list[Card]) -> Picture:
    """All cards in one picture, three beside each other."""
    placed, y, bottom = [], 8.0, 0.0
    columns = min(COLUMNS, len(cards))
    for start in range(0, len(cards), columns):
        row = cards[start : start + columns]
        for column, card in enumerate(row):
            placed.append(_placed(card, 8 + column * (WIDTH + GAP), y))
        bottom = y + IMAGE + 8 + max(card.bars.height for card in row)
        y = bottom + GAP
    return Picture(name, label, columns * (WIDTH + GAP) - GAP + 16, bottom + 8, join(placed))


def _placed(card: Card, x: float, y: float) -> Html:
    image = tag("image", href=f"data:image/png;base64,{card.example.png}", width=IMAGE, height=IMAGE)
    title = tag("text", cut(card.title, 30), tag("title", card.title), x=IMAGE + 12, y=28, class_="true")
    subtitle = tag("text", cut(card.subtitle, 32), x=IMAGE + 12, y=46, class_="muted")
    bars = tag("g", card.bars.body, transform=f"translate(0 {IMAGE + 8})")
    return tag("g", image, title, subtitle, bars, transform=f"translate({x:g} {y:g})")


def key(names: list[str]) -> Html:
    """Which colour is which arm."""
    return tag("p", *(tag("span", name, class_=f"arm {role(name)}") for name in names), class_="key")


def chance(value: float) -> str:
    """A probability in few letters, never rounded to certainty."""
    if 0 < value < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= value < 1 else f"{value:.1%}"
