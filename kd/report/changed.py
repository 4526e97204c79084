"""The images that distillation changed most: how likely each arm finds the true class, and what it takes them for."""

from kd.report import cards
from kd.report.cards import Card
from kd.report.examples import Example
from kd.report.markup import Html, cut, join, tag
from kd.report.pictures import LETTER, Axis, Picture, role
from kd.report.read import Run

ROW = 21.0  # pixels
LETTERS = 11  # of an arm's name
NOTE = (
    "Test images whose true class has a probability (T = 1) that differs most between baseline and student. "
    "Bars: this probability. After the arrow: what the arm takes the image for, orange where that is wrong."
)


def changed_pictures(run: Run) -> list[Picture]:
    found = _cards(run)
    return [cards.sheet("most_changed", "Test images that distillation changed most", found)] if found else []


def changed(run: Run) -> Html | None:
    """The images, the most changed first as the file has them."""
    found = _cards(run)
    if not found:
        return None
    grid = tag("div", *(cards.html(card, card.bars.inline()) for card in found), class_="cards")
    return join([grid, tag("p", NOTE, class_="note")])


def _cards(run: Run) -> list[Card]:
    found = cards.examples(run, "changed")[: cards.SHOWN]
    return [Card(one, f"true class: {run.class_name(one.target)}", _difference(one), _bars(run, one)) for one in found]


def _difference(example: Example) -> str:
    words = f"test image {example.index}"
    if not {"baseline", "student"} <= set(example.logits):
        return words
    before, after = (example.probabilities(arm)[example.target] for arm in ("baseline", "student"))
    return f"{words}, {100 * (after - before):+.1f} points"


def _bars(run: Run, example: Example) -> Picture:
    rows, names = [], cards.arms(run, example)
    x = Axis(0, 1, 14 + LETTER * min(max(map(len, names)), LETTERS), 166, [])
    for row, arm in enumerate(names):
        y, value = row * ROW, example.probabilities(arm)[example.target]
        number = example.predicted(arm)
        said = run.class_name(number)
        title = tag("title", f"{arm}: {value:.3%} for {run.class_name(example.target)}; takes it for {said}")
        bar = {"x": x.start, "y": y + 3, "height": ROW - 8}
        kind = "wrong" if number != example.target else "right"
        rows += [
            tag("text", cut(arm, LETTERS), tag("title", arm), x=x.start - 8, y=y + 14, class_="end"),
            tag("rect", **bar, width=x.end - x.start, class_="track"),
            tag("rect", title, **bar, width=max(0.6, x(value) - x.start), class_=f"bar {role(arm)}"),
            tag("text", cards.chance(value), x=x.end + 6, y=y + 14),
            tag("text", f"→ {cut(said, 8)}", tag("title", said), x=x.end + 54, y=y + 14, class_=kind),
        ]
    label = f"Test image {example.index}: probability of the true class"
    return Picture("changed", label, cards.WIDTH, ROW * len(names) + 2, join(rows))
