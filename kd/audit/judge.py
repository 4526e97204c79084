"""From finished runs to the content of audit.json: every number, and every verdict in words."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kd import claims
from kd.audit.evidence import CONTROLS, Evidence
from kd.audit.settings import changes, in_short, setup, shortened, without_aside
from kd.report.read import Run
from kd.schema import ComparisonConfig
from kd.statistics import DIGITS, HEADLINE_SEEDS, MIN_SEEDS, holm, seeds_needed, sign_flip_p, summary, verdict

SCHEMA = 2
ITSELF = "this is the run itself"
Values = dict[int, float]  # by seed


def audits(found: Sequence[Evidence]) -> list[dict[str, Any]]:
    """The content of audit.json of each configuration.

    Every comparison is a hypothesis that the claim states beforehand, and is judged by itself. The same comparison of
    several configurations, those of a sweep, is a search for one that helps: these are judged together (Holm).
    """
    contents = [_content(one) for one in found]
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for content in contents:
        for name, one in content["comparisons"].items():
            if one["missing"] != ITSELF:
                families.setdefault((content["experiment"], name), []).append(one)
    for together in families.values():
        _judge(together)
    for content in contents:
        content["notes"] += _power([one for one in content["comparisons"].values() if one["missing"] != ITSELF])
    return contents


def _judge(blocks: list[dict[str, Any]]) -> None:
    """Give the same comparison of one or more configurations its adjusted p value and its verdict."""
    adjusted = holm([1.0 if one["p"] is None else one["p"] for one in blocks])
    for one, p in zip(blocks, adjusted, strict=True):
        one["judged_together"] = len(blocks)
        one["p_holm"] = None if one["p"] is None else p
        one["verdict"] = verdict(one["n"], one["low"], one["high"], one["p_holm"])


def _content(evidence: Evidence) -> dict[str, Any]:
    """All but the verdicts of the comparisons. The controls are judged one by one.

    A gain counts as explained by none of the controls only if it exceeds each of them, so that more controls make that
    harder, and no adjustment is due.
    """
    runs = evidence.runs
    claim = next((run.claim for run in runs.values() if run.claim), None)
    other = setup(evidence.own, evidence.settings) if evidence.own else None
    groups = [runs, *evidence.versus.values(), *(evidence.controls or {}).values()]
    every = [run.content for group in groups for run in group.values()]
    arms = _arms(evidence, claim)
    return {
        "schema": SCHEMA,
        "experiment": evidence.experiment,
        "command": evidence.command,
        "claim": claim and {name: claim.get(name) for name in ("source", "statement", "method")},
        "settings": in_short(evidence.settings),
        "configuration": without_aside(evidence.settings),
        "overrides": changes(evidence.own, evidence.settings) if evidence.own else [],
        "shortened": shortened(evidence.own, evidence.settings) if evidence.own else None,
        "setup": other,
        "seeds": evidence.seeds,
        "device": " + ".join(_distinct(content["device"] for content in every)) or None,
        "versions": _versions(every),
        "git": " + ".join(_distinct(content["git"] for content in every if content.get("git"))) or None,
        "arms": arms,
        "comparisons": {name: _compare(evidence, one, other) for name, one in evidence.comparisons.items()},
        "controls": _controls(evidence, other),
        "failed": [asdict(failure) for failure in evidence.failed],
        "notes": [*evidence.notes, *_of_one_network(arms)],
    }


def default_path(evidence: Evidence, found: Sequence[Evidence]) -> Path:
    """outputs/<experiment>/audit-<hash>/audit.json.

    The hash is of the settings, the seeds, the controls, and what of the same experiment is judged together with it.
    """
    content: list[Any] = [without_aside(evidence.settings), evidence.seeds, evidence.controls is not None]
    family = [[without_aside(one.settings), one.seeds] for one in found if one.experiment == evidence.experiment]
    content += [family] if len(family) > 1 else []
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return Path("outputs") / evidence.experiment / f"audit-{digest}" / "audit.json"


def measured(runs: Mapping[int, Run], arm: str, metric: str) -> Values:
    """An arm's metric by seed, of the runs that have it."""
    found = {}
    for seed, run in runs.items():
        value = claims.measure(run.content["arms"][arm], metric) if arm in run.content["arms"] else None
        if value is not None:
            found[seed] = value
    return found


def _arms(evidence: Evidence, claim: dict[str, Any] | None) -> dict[str, Any]:
    published = (claim or {}).get("published") or {}
    compared = [(one.arm, one.metric) for one in evidence.comparisons.values()]
    compared += [(one.minus, one.metric) for one in evidence.comparisons.values() if not one.versus]
    names = dict.fromkeys(arm for run in evidence.runs.values() for arm in run.content["arms"])
    found: dict[str, Any] = {}
    for arm in names:
        own = published.get(arm, {})
        metrics = dict.fromkeys(["accuracy", "errors", *own, *(metric for name, metric in compared if name == arm)])
        found[arm] = {
            metric: {"published": own.get(metric), **_spread(evidence.runs, arm, measured(evidence.runs, arm, metric))}
            for metric in metrics
        }
    return found


def _spread(runs: Mapping[int, Run], arm: str, values: Values) -> dict[str, Any]:
    """Mean, spread and values by seed. One network under every seed, as teachers often are, has no spread."""
    keys = {runs[seed].content["arms"][arm].get("store_key") for seed in values}
    one = len(values) > 1 and len(keys) == 1 and None not in keys
    short = asdict(summary([next(iter(values.values()))] if one else list(values.values())))
    short.pop("n")
    return {**short, "one_network": one, "values": _by_seed(values)}


def _of_one_network(arms: dict[str, Any]) -> list[str]:
    """Seeds cannot speak for what none of them varies: a teacher that is trained once, say."""
    return [
        f"The {name} is one network under all seeds: what is said here holds for this one {name}."
        for name, metrics in arms.items()
        if any(one["one_network"] for one in metrics.values())
    ]


def _power(comparisons: Sequence[dict[str, Any]]) -> list[str]:
    """What so many seeds are too few for, though they are enough for a verdict."""
    n, together = max(((one["n"], one["judged_together"]) for one in comparisons), default=(0, 0))
    if MIN_SEEDS <= n < (needed := seeds_needed(together)):
        return [
            f"{together} configurations are judged together: with {n} seeds none can be supported; {needed} seeds can."
        ]
    if MIN_SEEDS <= n < HEADLINE_SEEDS:
        return [f"{n} seeds are enough for a verdict, {HEADLINE_SEEDS} for a headline."]
    return []


def _compare(evidence: Evidence, one: ComparisonConfig, other: str | None) -> dict[str, Any]:
    """A comparison before it is judged; one that would subtract every run's number from itself is not."""
    if tuple(one.versus) in evidence.itself and one.arm == one.minus:
        nothing = {**_paired({}, {}), "p_holm": None, "judged_together": 0}
        return {**asdict(one), "setup": other, **nothing, "missing": ITSELF, "verdict": f"not judged: {ITSELF}"}
    others = evidence.versus.get(tuple(one.versus), {}) if one.versus else evidence.runs
    left, right = measured(evidence.runs, one.arm, one.metric), measured(others, one.minus, one.metric)
    return {**asdict(one), "setup": other, **_paired(left, right), "missing": _missing(evidence, one, left, right)}


def _missing(evidence: Evidence, one: ComparisonConfig, left: Values, right: Values) -> str | None:
    """Why seeds are without a difference; None if all have one."""
    unpaired = [seed for seed in evidence.seeds if not (seed in left and seed in right)]
    if not unpaired:
        return None
    sides = [f"the {one.arm}'s {one.metric}"] if set(unpaired) - set(left) else []
    where = f" under {' '.join(one.versus)}" if one.versus else ""
    sides += [f"the {one.minus}'s {one.metric}{where}"] if set(unpaired) - set(right) else []
    return f"no {' and no '.join(sides)} for seed{'s' * (len(unpaired) > 1)} {', '.join(map(str, unpaired))}"


def _paired(left: Values, right: Values) -> dict[str, Any]:
    differences = {seed: round(left[seed] - right[seed], DIGITS) for seed in left if seed in right}
    p = float(sign_flip_p(list(differences.values()))) if differences else None
    return {"differences": _by_seed(differences), **asdict(summary(list(differences.values()))), "p": p}


def _controls(evidence: Evidence, other: str | None) -> dict[str, Any] | None:
    """Each control against the plain baseline and against the distilled student; null if none were asked for."""
    if evidence.controls is None:
        return None
    baseline, student = (measured(evidence.runs, arm, "accuracy") for arm in ("baseline", "student"))
    gain = _judged(student, baseline, other)
    found: dict[str, Any] = {}
    for name, runs in evidence.controls.items():
        arm, what = CONTROLS[name]
        control = measured(runs, arm, "accuracy")
        found[name] = {
            "what": what,
            "accuracy": _spread(runs, arm, control),
            "minus_baseline": _judged(control, baseline, other),
            "student_minus": _judged(student, control, other),
        }
    words = _exceeds(gain, {name: one["student_minus"] for name, one in found.items()})
    skipped = dict.fromkeys(evidence.same_as_student, "this is what the experiment itself does")
    return {"metric": "accuracy", "setup": other, "gain": gain, "found": found, "skipped": skipped, "words": words}


def _judged(left: Values, right: Values, other: str | None) -> dict[str, Any]:
    paired = _paired(left, right)
    return {"setup": other, **paired, "verdict": verdict(*(paired[name] for name in ("n", "low", "high", "p")))}


def _exceeds(gain: dict[str, Any], over: dict[str, dict[str, Any]]) -> str:
    """Whether the student's gain is more than what the controls reach without the teacher's knowledge."""
    outcome = {name: one["verdict"] for name, one in over.items()}
    if gain["n"] < MIN_SEEDS or any(one["n"] < MIN_SEEDS for one in over.values()):
        return "too few seeds to say whether the gain exceeds the controls"
    if gain["verdict"] != "supported":
        return "no gain over the baseline is established, so there is none that a control would explain"
    if not over:
        return "the experiment is its own control; there is no other"
    beaten = [name for name in outcome if outcome[name] == "supported"]
    level = [name for name in outcome if outcome[name] == "inconclusive"]
    behind = [name for name in outcome if outcome[name] == "refuted"]
    parts = [f"exceeds {_listed(beaten)}"] if beaten else []
    parts += [f"is not shown to exceed {_listed(level)}"] if level else []
    parts += [f"is below that of {_listed(behind)}"] if behind else []
    return f"the student's gain {', '.join(parts)}"


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _by_seed(values: Values) -> dict[str, float]:
    return {str(seed): value for seed, value in values.items()}


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values))


def _versions(contents: list[dict[str, Any]]) -> dict[str, str]:
    """The packages' versions; where runs differ, all of them."""
    names = dict.fromkeys(name for content in contents for name in content.get("versions") or {})
    return {
        name: " + ".join(_distinct(c["versions"][name] for c in contents if name in (c.get("versions") or {})))
        for name in names
    }
