"""Everything about one run: its numbers, its pictures, what it was made with."""

import math
from collections.abc import Iterator

from kd.report import words
from kd.report.classes import class_pictures, confusions, per_class
from kd.report.confusion import READABLE
from kd.report.markup import Html, breakable, figure, join, measured, percent, points, short, table, tag
from kd.report.pictures import Line, Picture, line_chart, role
from kd.report.read import Arm, Run

NOTE = (
    "NLL: mean negative log-likelihood, in nats. ECE: expected calibration error, 15 bins. KL to teacher: mean "
    "KL(teacher || network) at T = 1, in nats. A dash: not measured, or trained elsewhere. "
    "In brackets: the epochs of a first stage."
)
CAPTIONS = {
    "curves_accuracy": "Validation accuracy. A ring marks the epoch whose weights were kept.",
    "curves_loss": "Training loss. Arms with different objectives: compare shapes, not heights.",
}


def pictures(run: Run) -> dict[str, Picture]:
    """The run's pictures by name. What was not logged has none, nor has a matrix that nobody could read."""
    curves = (_curves(run, "curves_accuracy", "val/accuracy"), _curves(run, "curves_loss", "train/loss"))
    return {picture.name: picture for picture in (*curves, *class_pictures(run)) if picture is not None}


def section(run: Run, drawn: dict[str, Picture]) -> Html:
    """The run's part of the page, below its title."""
    parts: Iterator[tuple[str, Html | None]] = iter(
        (
            ("Result", results(run)),
            ("Claim", _claim(run)),
            ("Omitted classes", _corrections(run)),
            ("Training", _training(run, drawn)),
            ("Classes", per_class(run, drawn)),
            ("Confusions", confusions(run, drawn)),
            ("Provenance", _provenance(run)),
        )
    )
    return join([tag("section", tag("h2", title), content) for title, content in parts if content])


def headline(run: Run) -> Html:
    """Each arm's test accuracy, large, and what the run found in words."""
    tiles = [
        tag(
            "div",
            tag("span", name, class_="label"),
            tag("strong", percent(arm.test.accuracy)),
            tag("span", f"{arm.test.errors:,} of {arm.test.n:,} wrong", class_="muted"),
            class_=f"tile {role(name)}",
        )
        for name, arm in run.arms.items()
    ]
    said = [tag("p", words.outcome(run), class_="outcome")]
    if left_out := words.omission(run):
        said.append(tag("p", left_out))
    return join([*said, tag("div", *tiles, class_="tiles")])


def results(run: Run) -> Html:
    """The table of arms, one column each."""
    arms = list(run.arms.values())
    rows: list[list[object]] = [
        ["network", *(breakable(arm.model) for arm in arms)],
        ["parameters", *(measured(arm.params, ",") for arm in arms)],
        ["MACs per image", *(short(arm.macs) for arm in arms)],
        ["test accuracy", *(percent(arm.test.accuracy) for arm in arms)],
        ["test errors", *(measured(arm.test.errors, ",") for arm in arms)],
        ["NLL", *(measured(arm.test.nll, ".4f") for arm in arms)],
        ["ECE", *(measured(arm.test.ece, ".4f") for arm in arms)],
        ["agreement with teacher", *(percent(arm.test.agreement) for arm in arms)],
        ["KL to teacher", *(measured(arm.test.kl, ".4f") for arm in arms)],
        ["validation accuracy", *(percent(arm.val_accuracy) for arm in arms)],
        ["kept epoch", *(_kept(arm) for arm in arms)],
        ["training seconds", *(measured(arm.train_s, ",.1f") for arm in arms)],
        ["images/s", *(measured(arm.images_per_s, ",.0f") for arm in arms)],
    ]
    if run.claim:
        rows.append(["published", *(_published(run.claim["published"].get(arm.name)) for arm in arms)])
    head: list[object] = ["", *(tag("span", arm.name, class_=f"arm {role(arm.name)}") for arm in arms)]
    return join([table(head, rows), tag("p", NOTE, class_="note")])


def _claim(run: Run) -> Html | None:
    """What was published, and the same numbers of this run beside it."""
    if run.claim is None:
        return None
    rows: list[list[object]] = []
    for arm, metrics in run.claim["published"].items():
        found = (run.claim.get("measured") or {}).get(arm) or {}
        for metric, value in (metrics or {}).items():
            both = [words.metric_value(metric, one) for one in (value, found.get(metric))]
            rows.append([f"{arm}, {metric}", *both, _difference(metric, value, found.get(metric))])
    quote = tag("blockquote", tag("p", run.claim.get("statement")), tag("cite", run.claim.get("source")))
    return join([quote, table(["", "published", "measured", "difference"], rows) if rows else None])


def _corrections(run: Run) -> Html | None:
    """The omitted classes before and after their output bias was corrected."""
    rows: list[list[object]] = [
        [
            f"{arm.name}, {run.class_name(entry['class'])}",
            "oracle (tuned on the test set)" if entry.get("rule") == "oracle" else entry.get("rule"),
            measured(entry.get("bias"), "+.3g"),
            percent(entry.get("accuracy_before")),
            percent(entry.get("accuracy_after")),
            percent(arm.test.accuracy),
            percent(entry.get("overall_after")),
        ]
        for arm in run.arms.values()
        for entry in arm.omitted
    ]
    head: list[object] = ["", "rule", "bias", "class before", "class after", "all before", "all after"]
    note = tag(
        "p", "Accuracy on the class and on all test images, before and after its bias is changed.", class_="note"
    )
    return join([table(head, rows), note]) if rows else None


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
    return tag("div", *shown, class_="two")


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


def _kept(arm: Arm) -> str:
    if arm.selected_epoch is None:
        return "-"
    first = f" (+ {arm.initial_epochs})" if arm.initial_epochs else ""
    return f"{arm.selected_epoch} of {arm.epochs}{first}"


def _published(metrics: object) -> object:
    if not isinstance(metrics, dict) or not metrics:
        return "-"
    shown = [
        [words.metric_value(metric, value), "" if metric == "accuracy" else f" {metric}"]
        for metric, value in metrics.items()
    ]
    return join([part for i, pair in enumerate(shown) for part in (["; "] if i else []) + pair])


def _difference(metric: str, published: object, found: object) -> Html:
    if not isinstance(published, int | float) or not isinstance(found, int | float):
        return Html("-")
    return points(found - published) if words.is_share(metric) else measured(found - published, "+,.4g")
