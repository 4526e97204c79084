"""What was published, and the same numbers of this run beside it."""

from typing import Any

from kd.claims import METRICS, measure
from kd.report import words
from kd.report.markup import DASH, Html, join, measured, percent, points, table, tag
from kd.report.read import Run


def claim(run: Run) -> Html | None:
    """The claim's words, its numbers beside the measured ones, and whose method they belong to."""
    if run.claim is None:
        return None
    rows: list[list[object]] = []
    for arm, metrics in run.claim["published"].items():
        found = (run.claim.get("measured") or {}).get(arm) or {}
        for metric, value in (metrics or {}).items():
            both = [words.metric_value(metric, one) for one in (value, found.get(metric))]
            title = f"{arm}, {words.metric_name(metric)}"
            rows.append([title, *both, _difference(metric, value, found.get(metric))])
    quote = tag("blockquote", tag("p", run.claim.get("statement")), tag("cite", run.claim.get("source")))
    parts = [quote, table(["", "published", "measured", "difference"], rows, class_="named") if rows else None]
    if other := words.other_method(run.claim, run.method):
        known = "" if "student" in run.claim["published"] else ", so none stands here"
        said = f"The student's published numbers are for method {other}; this run's method is {run.method.get('name')}"
        parts.append(tag("p", f"{said}{known}.", class_="warning"))
    if not rows:
        parts.append(tag("p", "No number was published for these settings.", class_="note"))
    return join([*parts, _hypotheses(run, run.claim)])


def _hypotheses(run: Run, claimed: dict[str, Any]) -> Html | None:
    """What the claim says of differences between arms, and the same differences in this run, of one seed."""
    said = [_hypothesis(run, one) for one in (claimed.get("comparisons") or {}).values() if not one.get("versus")]
    if not said:
        return None
    note = (
        "Differences between arms in points. One run shows where a claim points; python -m kd.audit judges it over "
        "several seeds."
    )
    return join([tag("ul", *said, class_="claims"), tag("p", note, class_="note")])


def _hypothesis(run: Run, one: dict[str, Any]) -> Html:
    metric, arms = str(one.get("metric")), [str(one.get(key)) for key in ("arm", "minus")]
    found = [run.content["arms"].get(arm) for arm in arms]
    first, second = (measure(block, metric) if block and metric in METRICS else None for block in found)
    change = None if first is None or second is None else first - second
    numbers = [f"{words.metric_name(metric)}: {arms[0]} ", percent(first), f", {arms[1]} ", percent(second), ", "]
    measured_here = tag("span", *numbers, tag("strong", points(change)), class_="muted")
    return tag("li", one.get("statement"), Html("<br>"), measured_here)


def _difference(metric: str, published: object, found: object) -> Html:
    if not isinstance(published, int | float) or not isinstance(found, int | float):
        return Html(DASH)
    return points(found - published) if words.is_share(metric) else measured(found - published, "+,.4g")
