"""Everything about one run: its numbers, its pictures, what it was made with."""

import math
from collections.abc import Iterator

from kd.report import words
from kd.report.changed import changed, changed_pictures
from kd.report.claim import claim
from kd.report.classes import class_pictures, confusions, per_class
from kd.report.confusion import READABLE
from kd.report.correction import Correction
from kd.report.dark import dark, dark_pictures
from kd.report.markup import Html, figure, join, percent, tag
from kd.report.omission import omission, omission_pictures
from kd.report.pictures import Line, Picture, line_chart, role
from kd.report.read import Run
from kd.report.reliability import reliability, reliability_pictures
from kd.report.results import results
from kd.report.story import corrected, story

CAPTIONS = {
    "curves_accuracy": "Validation accuracy. A ring marks the epoch whose weights were kept.",
    "curves_loss": "Training loss. Arms with different objectives: compare shapes, not heights.",
}


def pictures(run: Run) -> dict[str, Picture]:
    """The run's pictures by name. What was not logged has none, nor has a matrix that nobody could read."""
    curves = (_curves(run, "curves_accuracy", "val/accuracy"), _curves(run, "curves_loss", "train/loss"))
    panels = (class_pictures, omission_pictures, reliability_pictures, dark_pictures, changed_pictures)
    drawn = [*curves, *(picture for panel in panels for picture in panel(run))]
    return {picture.name: picture for picture in drawn if picture is not None}


def section(run: Run, drawn: dict[str, Picture]) -> Html:
    """The run's part of the page, below its title."""
    parts: Iterator[tuple[str, Html | None]] = iter(
        (
            ("Result", results(run)),
            ("Omitted classes", omission(run, drawn)),
            ("Claim", claim(run)),
            ("Training", _training(run, drawn)),
            ("Classes", per_class(run, drawn)),
            ("Confusions", confusions(run, drawn)),
            ("Calibration", reliability(run, drawn)),
            ("Dark knowledge", dark(run)),
            ("Most changed by distillation", changed(run)),
            ("Provenance", _provenance(run)),
        )
    )
    return join([tag("section", tag("h2", title), content) for title, content in parts if content])


def headline(run: Run) -> Html:
    """Each arm's test accuracy, large, and what the run found in words."""
    omitted = {name: _on_omitted(found, run.arms[name].test.accuracy) for name, found in corrected(run).items()}
    tiles = [
        tag(
            "div",
            tag("span", name, class_="label"),
            tag("strong", percent(arm.test.accuracy)),
            tag("span", f"{arm.test.errors:,} of {arm.test.n:,} wrong", class_="muted"),
            *(tag("span", line, class_="muted") for line in omitted.get(name, ())),
            class_=f"tile {role(name)}",
        )
        for name, arm in run.arms.items()
    ]
    said = [tag("p", words.outcome(run), class_="outcome")]
    if left_out := words.omission(run):
        said.append(tag("p", left_out))
    if told := story(run):
        said.append(tag("p", told, class_="story"))
    return join([*said, tag("div", *tiles, class_="tiles")])


def _training(run: Run, drawn: dict[str, Picture]) -> Html | None:
    if not run.curves:
        return tag("p", "There is no metrics.csv in the run folder.", class_="note")
    shown = []
    for name, caption in CAPTIONS.items():
        if name in drawn:
            shown.append(figure(drawn[name].inline(), caption))
        elif name == "curves_accuracy":
            shown.append(
                tag("p", "No validation accuracy was logged: the last epoch's weights were kept.", class_="note")
            )
    missing = [
        name for name in run.arms if not any(label == name or label.startswith(f"{name}-") for label in run.curves)
    ]
    note = f"No curve of {words.enumerated(missing)}: not trained here, or not by itself."
    return join([tag("div", *shown, class_="two"), tag("p", note, class_="note") if missing else None])


def _provenance(run: Run) -> Html:
    content, data = run.content, run.data
    names = ", ".join(str(name) for name in data["classes"])
    facts: list[tuple[str, object]] = [
        ("data", data.get("name")),
        ("images", f"{data['train']:,} train, {data['val']:,} validation, {data['test']:,} test"),
        ("classes", names if run.classes <= READABLE else f"{run.classes}"),
        ("omitted", words.omission(run) or "none"),
        *((("first stage minimises", first),) if (first := run.method.get("initial_objective")) else ()),
        ("student minimises", run.method.get("objective") or "-"),
        ("device", content.get("device")),
        ("whole run", f"{content['wall_s']:,.1f} s" if content.get("wall_s") is not None else "-"),
        ("git", content.get("git") or "not run from a checkout"),
        ("configuration", content.get("config_hash")),
        *((f"{arm.name} in store", run.content["arms"][arm.name].get("store_key")) for arm in run.arms.values()),
        *(content.get("versions") or {}).items(),
    ]
    listed = tag("dl", *(tag("div", tag("dt", key), tag("dd", value)) for key, value in facts))
    config = tag("details", tag("summary", "Resolved configuration (config.yaml)"), tag("pre", run.config))
    return join([listed, config if run.config else None])


def _curves(run: Run, name: str, scalar: str) -> Picture | None:
    lines = []
    # an arm's first stage after the arms, so that each arm has one style of line in every picture
    for label, scalars in sorted(run.curves.items(), key=lambda curve: curve[0].endswith("-initial")):
        arm = run.arms.get(label)
        known = [(epoch, value) for epoch, value in scalars.get(scalar, []) if math.isfinite(value)]
        if known:
            lines.append(Line(label, known, arm.selected_epoch if arm and scalar == "val/accuracy" else None))
    label = f"{'Validation accuracy' if scalar == 'val/accuracy' else 'Training loss'} by epoch"
    return line_chart(name, label, lines, percent=scalar == "val/accuracy") if lines else None


def _on_omitted(correction: Correction, accuracy: float) -> list[str]:
    """`never seen: 86.8% → 98.6% right`, and what the corrected bias did to all images: `all: 97.9% → 98.2%`."""
    rule = correction.rules.get(correction.main or "")
    shares = [correction.omitted_accuracy, *([rule.omitted_accuracy] if rule else [])]
    seen = f"never seen: {' → '.join('-' if share is None else f'{share:.1%}' for share in shares)} right"
    return [seen, *([f"all: {accuracy:.1%} → {rule.accuracy:.1%}"] if rule else [])]
