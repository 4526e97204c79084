"""The classes that an arm never saw, before and after the bias of its output is corrected."""

from collections.abc import Callable
from typing import Any

from kd.report import words
from kd.report.bias_curve import bias_curve
from kd.report.confusion import READABLE, commonest, file_name, matrix
from kd.report.correction import RULES, Correction, Rule
from kd.report.markup import DASH, Html, figure, join, measured, percent, table, tag
from kd.report.pictures import Picture, role
from kd.report.read import Run
from kd.report.story import corrected, omitted_name

NOTE = (
    "The bias is added to the logits of the omitted classes, nothing is trained again. fixed: a given value. "
    "prior: set on held-out images without their labels, so that the classes are predicted as often as they occur. "
    "oracle: the best on the test set itself, an upper bound and no result."
)
CAPTION = "Test accuracy against the bias. A rule that gives each class its own bias stands at their mean."


def omission_pictures(run: Run) -> list[Picture]:
    """For each arm that never saw the classes the curve and, where it can be read, each rule's confusion matrix."""
    drawn: list[Picture | None] = []
    for name, correction in corrected(run).items():
        drawn.append(bias_curve(name, correction, run.arms[name].test.accuracy, omitted_name(run)))
        if run.classes <= READABLE:
            drawn += [matrix(run, name, found.confusion, rule=rule) for rule, found in correction.rules.items()]
    return [picture for picture in drawn if picture is not None]


def omission(run: Run, drawn: dict[str, Picture]) -> Html | None:
    """Each arm's rules side by side, its curve and its confusions before and after."""
    parts = [_arm(run, name, correction, drawn) for name, correction in corrected(run).items()]
    entries = _each_class(run)
    if parts and entries is not None:
        entries = (
            tag("details", tag("summary", "Each omitted class"), entries) if len(run.data["omitted"]) > 1 else None
        )
    note = tag("p", NOTE, class_="note") if parts else None
    return join([*parts, entries, note]) if parts or entries else None


def _arm(run: Run, name: str, correction: Correction, drawn: dict[str, Picture]) -> Html:
    head = tag("h3", tag("span", name, class_=f"arm {role(name)}"))
    reasons = [tag("p", f"No {rule}: {why}", class_="note") for rule, why in correction.missing.items()]
    numbers = tag("div", _rules(run, name, correction), *reasons)
    curve = drawn.get(f"omitted_{file_name(name)}")
    both = tag("div", numbers, figure(curve.inline(), CAPTION) if curve else None, class_="two")
    return tag("div", head, both, _confusions(run, name, correction, drawn), class_="part")


def _rules(run: Run, name: str, correction: Correction) -> Html:
    """The table of the rules, the published numbers below those that they stand for."""
    test, rules = run.arms[name].test, correction.rules
    published: dict[str, Any] = {} if run.claim is None else run.claim["published"].get(name) or {}
    where = omitted_name(run) if len(run.data["omitted"]) == 1 else "omitted classes"
    rows: list[list[object]] = [["bias", DASH, *(_bias(rule) for rule in rules.values())]]

    def add(title: str, metric: str, before: object, shown: Callable[[Rule], Html]) -> None:
        rows.append([title, before, *(shown(rule) for rule in rules.values())])
        found = [
            published.get(metric),
            *(published.get(f"corrected_{metric}") if r == "fixed" else None for r in rules),
        ]
        if any(value is not None for value in found):
            rows.append(["as published", *(words.metric_value(metric, value) for value in found)])

    images = f"{correction.omitted_n:,}"
    add(f"right on {where}", "omitted_accuracy", percent(correction.omitted_accuracy), _omitted_accuracy)
    add(f"errors there, of {images}", "omitted_errors", measured(correction.omitted_errors, ","), _omitted_errors)
    add("right on all classes", "accuracy", percent(test.accuracy), lambda rule: percent(rule.accuracy))
    add(f"errors, of {test.n:,}", "errors", measured(test.errors, ","), lambda rule: measured(rule.errors, ","))
    return table(["", "before", *(RULES.get(rule, rule) for rule in rules)], rows, class_="small rules")


def _omitted_accuracy(rule: Rule) -> Html:
    return percent(rule.omitted_accuracy)


def _omitted_errors(rule: Rule) -> Html:
    return measured(rule.omitted_errors, ",")


def _bias(rule: Rule) -> Html:
    if rule.common_bias is not None:
        return measured(rule.common_bias, "+.3g")
    return join([measured(min(rule.bias.values()), "+.3g"), " to ", measured(max(rule.bias.values()), "+.3g")])


def _confusions(run: Run, name: str, correction: Correction, drawn: dict[str, Picture]) -> Html:
    """Before and after the main rule beside each other, the other rules folded away."""
    file = file_name(name)

    def shown(title: str, picture: str, counts: list[list[int]]) -> Html:
        content = drawn[picture].inline() if picture in drawn else commonest(run, counts)
        return tag("div", tag("h4", title), tag("div", content, class_="scroll"))

    after = {
        rule: shown(f"After: {RULES.get(rule, rule)}", f"confusion_{file}_{file_name(rule)}", found.confusion)
        for rule, found in correction.rules.items()
    }
    before = shown("Before", f"confusion_{file}", run.arms[name].test.confusion)
    first = [before, *([after.pop(correction.main)] if correction.main else [])]
    rest = None
    if after:
        rest = tag(
            "details", tag("summary", "Confusions under the other rules"), tag("div", *after.values(), class_="two")
        )
    return join([tag("div", *first, class_="two"), rest])


def _each_class(run: Run) -> Html | None:
    """Each omitted class under each rule."""
    rows: list[list[object]] = [
        [
            f"{arm.name}, {run.class_name(entry['class'])}",
            RULES.get(str(entry["rule"]), entry["rule"]),
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
    note = "Accuracy on the class and on all test images, before and after its bias is changed."
    return join([table(head, rows, class_="small"), tag("p", note, class_="note")]) if rows else None
