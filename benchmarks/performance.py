"""`make bench` is `python -m benchmarks.performance`: measure everything, and write docs/performance.json and .md.

python -m benchmarks.performance                 measure all and write the page (a quarter of an hour to an hour)
python -m benchmarks.performance step cache      measure these anew, and leave the others as they are
python -m benchmarks.performance page            write the page from docs/performance.json
python -m benchmarks.performance --name NAME     the same for docs/NAME.json and .md: another machine's record
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import cache, data, overhead, performance_page, roof, step, sweep
from benchmarks.pairs import PAIRS, configured
from benchmarks.precision import DATA as PRECISIONS
from benchmarks.rounds import forget_peak, machine, peak_mib
from kd.precision import precision

DOCS = Path(__file__).parents[1] / "docs"
RUNS, BATCHES = 8, (64, 128)
#: what is measured with several steps a call, too: where a step is so short that Python's part of it shows
SHORT, MANY_CALLS = ("mnist", "mlp_100", "mlp_800"), 16

MEASURES: dict[str, Callable[[], Any]] = {
    "data": data.measure,
    "step": lambda: _steps(step.measure),
    "cache": lambda: _steps(cache.measure),
    "overhead": overhead.measure,
    "sweep": lambda: {
        name: {kind: _sweep(name, kind == "cached") for kind in ("live", "cached")} for name in sweep.NETWORKS
    },
    "roof": lambda: {name: roof.measure(name) for name in PAIRS},
}


def _calls(name: str) -> tuple[int, ...]:
    return (1, MANY_CALLS) if name in SHORT else (1,)


def _steps(measure: Callable[[str, int, int], Any]) -> dict[str, Any]:
    """By pair, batch size and steps a call."""
    return {
        name: {str(batch): {str(calls): measure(name, batch, calls) for calls in _calls(name)} for batch in BATCHES}
        for name in PAIRS
    }


def _sweep(name: str, cached: bool) -> dict[str, Any]:
    """By steps a call."""
    return {str(calls): sweep.measure(name, RUNS, cached=cached, calls=calls) for calls in _calls(name)}


def main() -> None:
    asked = argparse.ArgumentParser(prog="benchmarks.performance", description=__doc__.splitlines()[0])
    asked.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(MEASURES)} or page; default: all")
    asked.add_argument("--name", default="performance", help="of the record and the page in docs: performance...")
    arguments = asked.parse_args()
    if unknown := set(arguments.parts) - {*MEASURES, "page"}:
        asked.error(f"unknown: {', '.join(sorted(unknown))}. Known: {', '.join(MEASURES)}, page.")
    if not arguments.name.startswith("performance"):
        asked.error(f"--name: expected a name that begins with performance, but got {arguments.name}.")
    torch.set_num_threads(1)
    record = DOCS / f"{arguments.name}.json"
    content = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for name in arguments.parts or MEASURES:
        if name in MEASURES:
            forget_peak()
            content[name] = {"found": MEASURES[name](), "machine": machine(), "peak_mib": round(peak_mib())}
            content["precision"] = precision(configured(PAIRS["mnist"], BATCHES[0]).trainer)
            record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
        print(page)


def pages() -> dict[Path, str]:
    """Return each record's page and what is on it; each names the others."""
    precisions = json.loads(PRECISIONS.read_text(encoding="utf-8"))
    records = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(DOCS.glob("performance*.json"))
    }
    for name, content in records.items():
        if missing := set(MEASURES) - set(content):
            raise SystemExit(f"docs/{name}.json lacks {', '.join(sorted(missing))}: measure that too (--name {name}).")
    return {
        DOCS / f"{name}.md": performance_page.render(name, content, precisions, sorted(set(records) - {name}))
        for name, content in records.items()
    }


if __name__ == "__main__":
    main()
