"""Dark knowledge: what the teacher's soft targets say of an image, at several temperatures, beside the other arms."""

import os
import zlib

from kd.report import cards
from kd.report.cards import Card, void
from kd.report.examples import Example
from kd.report.markup import Html, cut, join, tag
from kd.report.pictures import LETTER, Axis, Picture, role
from kd.report.read import Run

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
USUAL = 4.0  # shown for a method without a temperature
TOP = 5  # classes, besides the true one
LETTERS = 10  # of a class's name
THICK, BETWEEN = 11.0, 9.0  # of a bar, and between classes: pixels
NOTE = (
    "softmax(logits / T): the classes that the teacher finds likeliest, and the true one, in bold. At T = 1 a sure "
    "network puts nearly all on one class; a higher T shows which others it finds similar, and from that the student "
    "learns. The longest bar at each T has the full width."
)


def dark_pictures(run: Run) -> list[Picture]:
    """One sheet of the images, at the run's temperature."""
    found = _cards(run, _own(run))
    label = f"Soft targets of test images at T = {_own(run):g}"
    return [cards.sheet("dark_knowledge", label, found)] if found else []


def dark(run: Run) -> Html | None:
    """The images, and buttons that choose T: radio buttons and style sheet, no script."""
    own, temperatures = _own(run), sorted({*TEMPERATURES, _own(run)})
    by_temperature = [_cards(run, temperature) for temperature in temperatures]
    if not by_temperature[0]:
        return None
    group = f"t-{zlib.crc32(os.fsencode(run.folder)):08x}"  # its own on a page of several runs
    buttons = [_button(group, number, t, own) for number, t in enumerate(temperatures)]
    shown = []
    for same in zip(*by_temperature, strict=True):
        bars = join([tag("div", card.bars.inline(), class_=f"at t{number}") for number, card in enumerate(same)])
        shown.append(cards.html(same[0], bars))
    names = list(dict.fromkeys(arm for card in by_temperature[0] for arm in cards.arms(run, card.example)))
    grid = tag("div", *shown, class_="cards")
    panel = tag("div", *buttons, grid, class_="temperatures", role="group", aria_label="temperature")
    return join([cards.key(names), panel, tag("p", NOTE, class_="note")])


def _button(group: str, number: int, temperature: float, own: float) -> Html:
    given = {"checked": "checked"} if temperature == own else {}
    box = void("input", type="radio", name=group, id=f"{group}-{number}", class_=f"t{number}", **given)
    return join([box, tag("label", f"T = {temperature:g}", for_=f"{group}-{number}")])


def _own(run: Run) -> float:
    value = run.method.get("temperature")
    return float(value) if value else USUAL


def _cards(run: Run, temperature: float) -> list[Card]:
    found = cards.examples(run, "dark")[: cards.SHOWN]
    longest = max((_largest(run, example, temperature) for example in found), default=1.0)
    return [
        Card(
            example,
            f"true class: {run.class_name(example.target)}",
            f"test image {example.index}",
            _bars(run, example, temperature, longest),
        )
        for example in found
    ]


def _largest(run: Run, example: Example, temperature: float) -> float:
    """The largest probability that a card shows."""
    names = cards.arms(run, example)
    shown = _shown(example, names[0])
    chances = [example.probabilities(name, temperature) for name in names]
    return max(values[number] for values in chances for number in shown)


def _bars(run: Run, example: Example, temperature: float, largest: float) -> Picture:
    """For each class shown one bar per arm, with its probability; `largest` is that of the full width."""
    names = cards.arms(run, example)
    chances = {name: example.probabilities(name, temperature) for name in names}
    longest = max(len(run.class_name(number)) for number in range(run.classes))
    x = Axis(0, largest, 18 + LETTER * min(longest, LETTERS), cards.WIDTH - 44, [])
    high = THICK * len(names) + BETWEEN
    rows = []
    for row, number in enumerate(_shown(example, names[0])):
        y, said = row * high, run.class_name(number)
        middle = y + THICK * len(names) / 2 + 4
        kind = "end true" if number == example.target else "end"
        rows.append(tag("text", cut(said, LETTERS), tag("title", said), x=x.start - 8, y=middle, class_=kind))
        for place, (name, values) in enumerate(chances.items()):
            top, value = y + THICK * place, values[number]
            title = tag("title", f"{said}, T = {temperature:g}\n{name}  {value:.3%}")
            size = {"width": max(0.6, x(value) - x.start), "height": THICK - 1.5}
            rows.append(tag("rect", title, x=x.start, y=top, **size, class_=f"bar {role(name)}"))
            rows.append(tag("text", cards.chance(value), x=x(value) + 4, y=top + THICK - 2.5, class_="tiny"))
    label = f"Test image {example.index} at T = {temperature:g}"
    return Picture("soft_targets", label, cards.WIDTH, high * len(_shown(example, names[0])), join(rows))


def _shown(example: Example, arm: str) -> list[int]:
    """The likeliest classes of an arm, the likeliest first, and the true one; T does not change their order."""
    logits = example.logits[arm]
    order = sorted(range(len(logits)), key=lambda number: (-logits[number], number))
    return order[:TOP] + [number for number in order[TOP:] if number == example.target]
