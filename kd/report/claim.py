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
    parts = [quote, table(["", "published", "measured", "difference"], rows) if rows else None]
    if other := words.other_method(run.claim, run.method):
        known = "" if "student" in run.claim["published"] else ", so none stands here"
        said = f"The student's published numbers are for method {other}; this run's method is {run.method.get('name')}"
        parts.append(tag("p", f"{said}{known}.", class_="warning"))
    if not rows:
        parts.append(tag("p", "No number was published for these settings.", class_="note"))
    return join([*parts, _hypotheses(run, run.claim)])


def _hypotheses(run: Run, claimed: dict[str, Any]) -> Html | None:
    """What the claim says of differences between arms, and the same differences in this run, of one seed."""
    rows = [_hypothesis(run, one) for one in (claimed.get("comparisons") or {}).values() if not one.get("versus")]
    if not rows:
        return None
    note = "Each of these is judged over several seeds by python -m kd.audit; one run only shows where they point."
    head: list[object] = ["in this run", "metric", "first", "second", "difference"]
    return join([table(head, rows, class_="small claims"), tag("p", note, class_="note")])


def _hypothesis(run: Run, one: dict[str, Any]) -> list[object]:
    metric, arms = str(one.get("metric")), [str(one.get(key)) for key in ("arm", "minus")]
    blocks = [run.content["arms"].get(arm) for arm in arms]
    known = metric in METRICS and all(blocks)
    first, second = (measure(block, metric) if known else None for block in blocks)
    change = None if first is None or second is None else first - second
    shown = [join([percent(value), " ", arm]) for arm, value in zip(arms, (first, second), strict=True)]
    return [one.get("statement"), words.metric_name(metric), *shown, points(change)]


def _difference(metric: str, published: object, found: object) -> Html:
    if not isinstance(published, int | float) or not isinstance(found, int | float):
        return Html(DASH)
    return points(found - published) if words.is_share(metric) else measured(found - published, "+,.4g")
