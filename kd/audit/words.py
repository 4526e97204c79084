"""Numbers of an audit as people read them: shares in percent, their differences in points."""

from typing import Any

from kd.audit.settings import VAL
from kd.claims import SHARES

Block = dict[str, Any]
SAME = "one network"


def value(metric: str, number: float | None) -> str:
    """One number of a metric."""
    if number is None:
        return "-"
    if metric in SHARES:
        return f"{number:.2%}"
    return f"{number:.4f}" if metric in ("nll", "ece") else f"{number:.4g}" if number < 1000 else f"{number:,.0f}"


def spread(metric: str, block: Block) -> str:
    """Mean and standard deviation of an arm's metric."""
    if block["one_network"]:
        return f"{value(metric, block['mean'])} ({SAME})"
    if block["sd"] is None:
        return value(metric, block["mean"])
    scale, unit = (100, "%") if metric in SHARES else (1, "")
    digits = 2 if metric in SHARES else 4 if metric in ("nll", "ece") else 1
    return f"{scale * block['mean']:.{digits}f} ± {scale * block['sd']:.{digits}f}{unit}"


def interval(metric: str, block: Block) -> str:
    """The 95% interval of an arm's metric."""
    return "-" if block["low"] is None else f"[{value(metric, block['low'])}, {value(metric, block['high'])}]"


def difference(block: Block) -> str:
    """Mean and standard deviation of a comparison's differences, in points (shares are all that is compared)."""
    if block["mean"] is None:
        return "-"
    spread = "" if block["sd"] is None else f" ± {100 * block['sd']:.2f}"
    return f"{100 * block['mean']:+.2f}{spread}"


def difference_interval(block: Block) -> str:
    return "-" if block["low"] is None else f"[{100 * block['low']:+.2f}, {100 * block['high']:+.2f}]"


def points(number: float | None) -> str:
    """One difference in points."""
    return "-" if number is None else f"{100 * number:+.2f}"


def verdict(block: Block) -> str:
    """A verdict, and before it the setup that it speaks of where that is not the experiment's own."""
    return in_setup(block["setup"], str(block["verdict"]))


def in_setup(setup: str | None, text: str) -> str:
    return f"{setup}: {text}" if setup else text


def p_value(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}" if p >= 0.001 else "< 0.001"


def shortened(block: Block | None) -> str:
    """What was made shorter: `trainer.max_epochs 2 of 60`, `data.val 9000 instead of 5000`."""
    parts = [
        f"{key} {one['here']} {'instead of' if key == VAL else 'of'} {'all' if one['own'] is None else one['own']}"
        for key, one in (block or {}).items()
    ]
    return ", ".join(parts)


def overrides(content: Block) -> str:
    """How the runs' settings differ from the experiment's own."""
    return f"Other than the experiment's own: {' '.join(content['overrides'])}"


def sides(comparison: Block) -> str:
    """What a comparison subtracts from what: `student - baseline, accuracy`."""
    where = f" ({' '.join(comparison['versus'])})" if comparison["versus"] else ""
    return f"{comparison['arm']} - {comparison['minus']}{where}, {comparison['metric'].replace('_', ' ')}"


def named(arm: str, metric: str) -> str:
    return f"{arm} {metric.replace('_', ' ')}"
