"""docs/results.md and the README's table: every published claim beside what the audits in results/ measured.

    python -m kd.audit experiment=NAME seeds=6 out=results/NAME.json    an audit, as often as wanted
    python -m benchmarks.results                                        write both pages from results/*.json

Nothing of the two is written by hand; tests/test_results.py writes them again and compares.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kd import claims
from kd.audit import words
from kd.audit.request import PREFIX
from kd.audit.settings import changes
from kd.cli import compose, conf_dir
from kd.rules import check
from kd.schema import RunConfig
from kd.statistics import HEADLINE_SEEDS, MIN_SEEDS

ROOT = Path(__file__).parents[1]
RESULTS, PAGE, README = ROOT / "results", ROOT / "docs" / "results.md", ROOT / "README.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NOT_YET = "not yet run at full length"
OLDER = "of an older setup"
SCHEMA = 2

Content = dict[str, Any]  # of an audit.json
Row = list[str]


def audits(folder: Path = RESULTS) -> dict[str, list[Content]]:
    """The audits by experiment, those at full length first."""
    found: dict[str, list[Content]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise SystemExit(f"{path} is no audit of schema {SCHEMA}; write it with python -m kd.audit ... out={path}.")
        found.setdefault(content["experiment"], []).append(content)
    return {name: sorted(group, key=lambda content: bool(content["shortened"])) for name, group in found.items()}


def claimed() -> dict[str, RunConfig]:
    """Every experiment that claims something, with its own settings."""
    files = (conf_dir() / "experiment").glob("*.yaml")
    names = sorted(path.stem for path in files if not path.stem.startswith("_"))
    configs = {name: check(compose([f"experiment={name}"])) for name in names}
    return {name: config for name, config in configs.items() if config.claim is not None}


# --- the table --------------------------------------------------------------------------------------------------------


HEADS = ["experiment", "published", "measured", "n", "difference in points", "verdict", "device", "again"]


def rows(configs: dict[str, RunConfig], found: dict[str, list[Content]]) -> list[Row]:
    """One row per audit, in the order of HEADS, and one for each experiment without an audit at full length."""
    table = []
    for name in sorted({*configs, *found}):
        if all(content["shortened"] for content in found.get(name, [])):
            table.append(_unmeasured(name, configs.get(name)))
        table += [_measured(content, configs.get(name)) for content in found.get(name, [])]
    return table


def changed_since(content: Content, config: RunConfig | None) -> list[str]:
    """The settings that the experiment has changed since this audit, which had not set them itself, as they are now."""
    if config is None:
        return []
    own = {override.partition("=")[0] for override in content["overrides"]}
    return [now for now in changes(content["configuration"], asdict(config)) if now.partition("=")[0] not in own]


def _unmeasured(name: str, config: RunConfig | None) -> Row:
    published = claims.published(config.claim, config) if config and config.claim else {}
    cells = [
        (arm, metric, words.value(metric, number)) for arm, of in published.items() for metric, number in of.items()
    ]
    return [link(name), _by_arm(cells), NOT_YET, "-", "-", "-", "-", f"`{PREFIX} experiment={name} seeds={MIN_SEEDS}`"]


def _measured(content: Content, config: RunConfig | None) -> Row:
    comparisons = content["comparisons"]
    cells = [(arm, metric, one) for arm, metrics in content["arms"].items() for metric, one in metrics.items()]
    # of a claim without a number, what its comparisons speak of
    compared = {one["metric"] for one in comparisons.values()}
    shown = [cell for cell in cells if cell[2]["published"] is not None]
    measured = shown or [cell for cell in cells if cell[1] in compared]
    label = link(content["experiment"])
    if content["shortened"]:
        label += f"<br>**shortened**: {words.shortened(content['shortened'])}"
    elif content["overrides"]:
        label += f"<br>with {', '.join(content['overrides'])}"
    if changed_since(content, config):
        label += f"<br>**{OLDER}**"
    names = {name: f"{name}: " if len(comparisons) > 1 else "" for name in comparisons}
    statistics = {
        name: f"{words.difference(one)} {words.difference_interval(one)}" for name, one in comparisons.items()
    }
    return [
        label,
        _by_arm([(arm, metric, words.value(metric, one["published"])) for arm, metric, one in shown]),
        _by_arm([(arm, metric, words.spread(metric, one)) for arm, metric, one in measured]),
        str(max(one["n"] for one in comparisons.values())),
        "<br>".join(f"{names[name]}{text}" for name, text in statistics.items()),
        "<br>".join(f"{names[name]}{words.verdict(one)}" for name, one in comparisons.items()),
        content["device"] or "-",
        f"`{content['command']}`",
    ]


def _by_arm(cells: list[tuple[str, str, str]]) -> str:
    """(arm, metric, text) of several metrics in one table cell: a line per arm."""
    arms: dict[str, list[str]] = {}
    for arm, metric, text in cells:
        arms.setdefault(arm, []).append(f"{metric.replace('_', ' ')} {text}")
    return "<br>".join(f"{arm}: {', '.join(texts)}" for arm, texts in arms.items()) or "-"


def link(name: str) -> str:
    return f"[{name}](#{name})"


def table(heads: list[str], body: list[Row]) -> list[str]:
    """A Markdown table, left-aligned."""
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in body]
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *escaped)]


# --- the page ---------------------------------------------------------------------------------------------------------


INTRODUCTION = f"""# Results

Written by `python -m benchmarks.results` from the audits in `results/`; each is the outcome of the command beside it.

Measured: mean ± sample standard deviation over n seeds. Difference: the claim's comparison, arms paired by seed, with
the BCa 95% interval. **Supported**: the interval is above 0 and p < 0.05 (exact sign-flip test; each comparison is a
hypothesis of its own, stated in the experiment's YAML). **Refuted**: the interval is below 0; no p is asked for. Else
**inconclusive**. Fewer than {MIN_SEEDS} seeds have no verdict, {HEADLINE_SEEDS} make a headline. A shortened setup is
marked as such and says nothing about the published claim; a verdict under other settings names them. An audit whose
experiment has changed since is marked "of an older setup"."""


def render(configs: dict[str, RunConfig], found: dict[str, list[Content]]) -> str:
    """Return docs/results.md."""
    lines = [INTRODUCTION, "", *table(HEADS, rows(configs, found))]
    for name in sorted({*configs, *found}):
        claim = configs[name].claim if name in configs else None
        lines += ["", f"## {name}", ""]
        lines += [f"{claim.statement} ({claim.source})." if claim else "No published claim."]
        if name not in found:
            lines += ["", f"{NOT_YET[0].upper()}{NOT_YET[1:]}."]
        for content in found.get(name, []):
            lines += ["", *section(content, configs.get(name))]
    return "\n".join([*lines, ""])


def section(content: Content, config: RunConfig | None) -> list[str]:
    """One audit: its settings, arms, comparisons, controls, and every seed's values."""
    settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in content["settings"].items() if v not in (None, []))
    lines = [f"### `{content['command']}`", "", f"{settings}; {content['device'] or 'no device'}."]
    if content["shortened"]:
        lines += ["", f"**Shortened**: {words.shortened(content['shortened'])}."]
    if changed := changed_since(content, config):
        lines += [
            "",
            f"**{OLDER.capitalize()}**: the experiment now has `{' '.join(changed)}`. Audit it anew.",
        ]
    if content["overrides"]:
        lines += ["", f"Other than the experiment's own: `{' '.join(content['overrides'])}`."]
    arms = [
        [words.named(arm, m), words.value(m, one["published"]), words.spread(m, one), words.interval(m, one)]
        for arm, metrics in content["arms"].items()
        for m, one in metrics.items()
    ]
    lines += ["", *table(["", "published", "measured", "95% interval"], arms)]
    compared = [
        [
            f"{name}: {one['statement']}",
            words.sides(one),
            *statistics(one),
            words.verdict(one),
        ]
        for name, one in content["comparisons"].items()
    ]
    heads = ["comparison", "what", "n", "difference in points", "95% interval", "p", "verdict"]
    lines += ["", *table(heads, compared)]
    if content["controls"]:
        lines += ["", *controls(content["controls"])]
    lines += ["", *by_seed(content)]
    said = [f"{name}: {one['missing']}." for name, one in content["comparisons"].items() if one["missing"]]
    said += [*content["notes"], *(f"Failed: `{one['command']}`: {one['error']}" for one in content["failed"])]
    lines += [line for text in said for line in ("", text)]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return [*lines, "", f"Versions: {versions}{'; code ' + content['git'] if content['git'] else ''}."]


def statistics(one: Content) -> Row:
    return [str(one["n"]), words.difference(one), words.difference_interval(one), words.p_value(one["p"])]


def controls(block: Content) -> list[str]:
    """The controls' table, and in words whether the gain exceeds them."""
    body = [["student - baseline", "the gain", "", *statistics(block["gain"]), words.verdict(block["gain"])]]
    for name, one in block["found"].items():
        accuracy = words.spread("accuracy", one["accuracy"])
        for label, side in ((f"{name} - baseline", "minus_baseline"), (f"student - {name}", "student_minus")):
            body.append([label, one["what"], accuracy, *statistics(one[side]), words.verdict(one[side])])
    heads = ["control", "what it is", "its accuracy", "n", "difference in points", "95% interval", "p", "verdict"]
    left_out = [f"Left out, {name}: {why}." for name, why in block["skipped"].items()]
    said = words.in_setup(block["setup"], block["words"])
    return [*table(heads, body), "", f"{said[0].upper()}{said[1:]}.", *left_out]


def by_seed(content: Content) -> list[str]:
    """Every seed's value of every metric, and its differences."""
    cells = [(arm, m, one) for arm, metrics in content["arms"].items() for m, one in metrics.items()]
    heads = ["seed", *(words.named(arm, m) for arm, m, _ in cells), *content["comparisons"]]
    body = []
    for seed in map(str, content["seeds"]):
        values = [words.value(m, one["values"].get(seed)) for _, m, one in cells]
        differences = [words.points(one["differences"].get(seed)) for one in content["comparisons"].values()]
        body.append([seed, *values, *differences])
    return table(heads, body)


# --- the README -------------------------------------------------------------------------------------------------------


def headline(configs: dict[str, RunConfig], found: dict[str, list[Content]]) -> str:
    """The README's table: the audits at full length, without device and command, and in words what is missing."""
    kept = [at for at, head in enumerate(HEADS) if head not in ("device", "again")]
    whole = {name: full for name, group in found.items() if (full := [one for one in group if not one["shortened"]])}
    body = [
        [row[at].replace("](#", "](docs/results.md#") for at in kept]
        for name in sorted(whole)
        for row in rows({name: configs[name]} if name in configs else {}, {name: whole[name]})
    ]
    missing = ", ".join(f"`{name}`" for name in sorted(set(configs) - set(whole)))
    said = [f"{NOT_YET[0].upper()}{NOT_YET[1:]}: {missing}."] if missing else []
    return "\n".join([*(table([HEADS[at] for at in kept], body) if body else []), *([""] if body else []), *said])


def within_markers(text: str, block: str) -> str:
    """The README with the block between its two markers. Raises `SystemExit` unless both are there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise SystemExit(f"README.md needs the lines {BEGIN} and {END}, once each and in this order, around the table.")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n{block}\n{after}"


def main() -> None:
    configs, found = claimed(), audits()
    PAGE.write_text(render(configs, found), encoding="utf-8")
    print(PAGE)
    README.write_text(within_markers(README.read_text(encoding="utf-8"), headline(configs, found)), encoding="utf-8")
    print(README)


if __name__ == "__main__":
    main()
