"""Published claims: the numbers that hold for a run's settings, and the same numbers of the run.

Nothing in this file imports torch: configurations are checked, and finished runs judged, without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from kd.check import choice, number
from kd.errors import ConfigError

if TYPE_CHECKING:
    from kd.schema import ClaimConfig, ComparisonConfig, RunConfig

Block = Mapping[str, Any]  # an arm's block of result.json
Numbers = dict[str, dict[str, Any]]  # arm, then metric
ARMS = ("teacher", "baseline", "student")
PUBLISHED_RULE = "fixed"


def _of_test(name: str) -> Callable[[Block], Any]:
    return lambda arm: arm["test"].get(name)


def _before(name: str) -> Callable[[Block], Any]:
    return lambda arm: arm["correction"]["before"].get(name) if arm.get("correction") else None


def _corrected(name: str) -> Callable[[Block], Any]:
    def find(arm: Block) -> Any:
        rules = (arm.get("correction") or {}).get("rules", {})
        return rules[PUBLISHED_RULE].get(name) if PUBLISHED_RULE in rules else None

    return find


#: what can be published about an arm, and where its block of result.json has the same number
METRICS: dict[str, Callable[[Block], Any]] = {
    **{name: _of_test(name) for name in ("accuracy", "errors", "nll", "ece")},
    **{name: _before(name) for name in ("omitted_accuracy", "omitted_errors")},
    **{f"corrected_{name}": _corrected(name) for name in ("accuracy", "errors", "omitted_accuracy", "omitted_errors")},
}
#: of these more is better, so that a difference above 0 speaks for the claim
SHARES = ("accuracy", "omitted_accuracy", "corrected_accuracy", "corrected_omitted_accuracy")


def measure(arm: Block, metric: str) -> float | int | None:
    """The metric of an arm's block of result.json; None if the run has no such number."""
    value: float | int | None = METRICS[metric](arm)
    return value


def published(claim: ClaimConfig, config: RunConfig) -> Numbers:
    """The published numbers that hold for a run's settings.

    Those of a row hold where every key of its `when` has the row's value. Another method than the claim's has no
    published student.
    """
    found: Numbers = {arm: dict(metrics) for arm, metrics in claim.published.items()}
    for row in claim.rows:
        if all(_value(config, key) == value for key, value in row.when.items()):
            for arm, metrics in row.published.items():
                found.setdefault(arm, {}).update(metrics)
    if claim.method not in (None, config.method.name):
        found.pop("student", None)
    return {arm: metrics for arm, metrics in found.items() if metrics}


def comparisons(claim: ClaimConfig | None) -> dict[str, ComparisonConfig]:
    """The hypotheses of a claim; of one without any, and of none, that distillation helps."""
    from kd.schema import ComparisonConfig

    if claim is not None and claim.comparisons:
        return claim.comparisons
    return {"helps": ComparisonConfig(statement="the distilled student has a higher test accuracy than its baseline")}


def block(claim: ClaimConfig | None, config: RunConfig, arms: Mapping[str, Block]) -> dict[str, Any] | None:
    """The `claim` block of result.json: what was published for these settings, beside what this run measured."""
    if claim is None:
        return None
    holds = published(claim, config)
    return {
        "source": claim.source,
        "statement": claim.statement,
        "method": claim.method,
        "published": holds,
        "measured": {
            arm: {metric: measure(arms[arm], metric) for metric in metrics}
            for arm, metrics in holds.items()
            if arm in arms
        },
        "comparisons": {name: asdict(one) for name, one in comparisons(claim).items()},
    }


def check(claim: ClaimConfig, config: RunConfig) -> None:
    """Raise `ConfigError` for an arm, a metric, a setting or a comparison that cannot be."""
    for where, numbers in (
        ("claim.published", claim.published),
        *(("claim.rows", row.published) for row in claim.rows),
    ):
        for arm, metrics in numbers.items():
            choice(f"arm in `{where}`", arm, ARMS)
            for metric, value in metrics.items():
                choice(f"metric in `{where}.{arm}`", metric, METRICS)
                number(f"{where}.{arm}.{metric}", value, low=0, high=1 if metric in SHARES else math.inf)
    for row in claim.rows:
        if not row.when:
            raise ConfigError("A row of `claim.rows` needs `when`; what always holds belongs to `claim.published`.")
        for key in row.when:
            _value(config, key)
    for name, comparison in claim.comparisons.items():
        where = f"claim.comparisons.{name}"
        choice(f"metric in `{where}`", comparison.metric, SHARES)
        choice(f"arm in `{where}`", comparison.arm, ARMS)
        choice(f"arm in `{where}`", comparison.minus, ARMS)
        if comparison.arm == comparison.minus and not comparison.versus:
            raise ConfigError(f"`{where}` compares the {comparison.arm} with itself; name another run in `versus`.")
        for override in comparison.versus:
            if override.partition("=")[0] in ("seed", "force", "experiment"):
                raise ConfigError(f"`{where}.versus` has {override!r}, but pairs have one seed and one experiment.")


def _value(config: RunConfig, key: str) -> Any:
    """The value at a dotted key; None if a group that was chosen has no such key.

    Raises `ConfigError` for a key that no configuration has.
    """
    found: Any = config
    for part in key.split("."):
        if is_dataclass(found):
            if not hasattr(found, part):
                raise ConfigError(f"A row of `claim.rows` has `when` {key!r}, but there is no {part!r} in its group.")
            found = getattr(found, part)
        elif isinstance(found, Mapping):
            found = found.get(part)
        else:
            return None
    return found
