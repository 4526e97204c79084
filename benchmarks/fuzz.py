"""`python -m benchmarks.fuzz --minutes 5`: damaged files for every reader; only our own error types may come out.

Valid files are changed where it matters (a value of a JSON object replaced, removed, repeated or nested, a field of a
table, a place in a header) and where it does not (bytes); then the reader reads them. What comes out must be a result
or a `UserError`. Prints and records the number of inputs for each reader in docs/fuzz.json; anything else that comes
out stops it, with the input's seed, by which `--seed` repeats it.
"""

import argparse
import copy
import csv
import io
import json
import random
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from kd.curves import read_metrics
from kd.errors import UserError
from kd.folder import finished
from kd.foreign_weights import load_foreign
from kd.report.configurations import recipe_text
from kd.report.missing import missing
from kd.report.read import find_runs, read_run
from kd.report.varied import settings
from kd.store import Store, read_weights
from kd.sweep.book import _attempts
from tests.report_folders import fake_run, result

Random = random.Random
OUT = Path(__file__).parents[1] / "docs" / "fuzz.json"
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**64, -(2**64), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "a", "0", "../..", "\x00", "\ud800", "<script>", "1e999", "é" * 300, [], [[]], [None], {}, {"": None},
]  # fmt: skip


class Workplace:
    """A folder with one valid file of each kind."""

    def __init__(self, root: Path) -> None:
        content = result(["cat", "dog", "owl"])
        content["arms"]["student"]["latency_ms"] = {"1": 0.5, "256": 9.0, "device": "cpu", "threads": 1, "repeats": 9}
        bins = [{"n": 5, "accuracy": 0.5, "confidence": 0.6}, {"n": 0, "accuracy": None, "confidence": None}]
        content["arms"]["student"]["test"]["reliability"] = bins
        content["claim"] = {
            "source": "s",
            "statement": "t",
            "published": {"student": {"accuracy": 0.5}},
            "measured": {},
        }
        self.run = fake_run(root / "run", content)
        png = "iVBORw0KGgo="
        image = {"index": 3, "target": 1, "kind": "dark", "png": png, "logits": {"student": [0.5, 1.0, -2.0]}}
        (self.run / "examples.json").write_text(json.dumps({"schema": 1, "images": [image, image]}))
        job = {
            "name": "a", "overrides": ["seed=0"], "seed": 0, "config_hash": "0123abcd", "state": "failed",
            "result": None, "error": {"status": 2, "message": "m"}, "attempts": 1, "seconds": 2.5, "where": "here",
        }  # fmt: skip
        self.sweep = root / "sweep"
        self.sweep.mkdir()
        about = {"schema": 1, "experiment": "e", "command": "c", "status": "running", "counts": {"failed": 1}}
        (self.sweep / "sweep.json").write_text(json.dumps({**about, "jobs": [job, job]}))
        self.network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.store = Store(root / "store")
        meta = {"class_names": ["a", "b"], "mean": [0.5], "std": [0.5], "val": {"accuracy": 0.5, "nll": 1.0}}
        self.entry = self.store.put("key", self.network, {**meta, "delivered": ["peer"]}).folder
        self.weights = root / "net.safetensors"
        save_file(self.network.state_dict(), self.weights, {"class_names": '["a", "b"]', "mean": "[0.5]"})
        self.torch = root / "net.pt"
        torch.save({"state_dict": self.network.state_dict(), "classes": ["a", "b"], "epoch": 3}, self.torch)
        self.class_names, self.mean, self.std = ["a", "b"], [0.5], [0.5]

    def readers(self) -> dict[str, tuple[Path, Callable[[Random, bytes], bytes], Callable[[], object]]]:
        """Each reader: the file that it reads, how that is changed, and the reading."""
        return {
            "result.json": (self.run / "result.json", change_json, self._read_run),
            "metrics.csv": (self.run / "metrics.csv", change_table, self._read_curves),
            "examples.json": (self.run / "examples.json", change_json, lambda: read_run(self.run)),
            "config.yaml": (self.run / "config.yaml", change_bytes, self._read_config),
            "sweep.json": (self.sweep / "sweep.json", change_json, self._read_sweep),
            "meta.json": (self.entry / "meta.json", change_json, self._read_entry),
            "safetensors": (self.weights, change_header, lambda: self._load(self.weights)),
            "pt": (self.torch, change_bytes, lambda: self._load(self.torch)),
        }

    def _read_run(self) -> None:
        finished(self.run, "0123abcd")
        find_runs([self.run])
        read_run(self.run)

    def _read_curves(self) -> None:
        with suppress(UserError):
            read_metrics(self.run / "metrics.csv")
        read_run(self.run)

    def _read_config(self) -> None:
        settings(recipe_text(read_run(self.run).config))

    def _read_sweep(self) -> None:
        missing([self.sweep])
        _attempts(self.sweep / "sweep.json")

    def _read_entry(self) -> None:
        found = self.store.get("key")
        assert found is not None
        found.load_into(self.network)

    def _load(self, path: Path) -> None:
        load_foreign(self.network, path, self)  # type: ignore[arg-type]
        if path is self.weights:
            read_weights(path)


def change_bytes(draw: Random, content: bytes) -> bytes:
    """Bytes replaced, removed, inserted, repeated or cut off."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = draw.randrange(len(changed) + 1)
        kind = draw.randrange(5)
        if kind == 0 and place < len(changed):
            changed[place] = draw.randrange(256)
        elif kind == 1:
            changed[place:place] = draw.randbytes(draw.choice((1, 4, 100)))
        elif kind == 2:
            del changed[place : place + draw.choice((1, 3, 40))]
        elif kind == 3:
            changed[place:place] = changed[place : place + draw.choice((1, 8, 200))]
        elif draw.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def change_json(draw: Random, content: bytes) -> bytes:
    """Values of a JSON text replaced by odd ones, removed, repeated or nested; now and then only bytes."""
    if draw.random() < 0.2:
        return change_bytes(draw, content)
    value = json.loads(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        value = _changed(draw, value)
    text = json.dumps(value)
    if draw.random() < 0.05:
        text = text.replace("1", draw.choice(("1" * 5000, "1e400", "01", "[" * 50_000)), 1)
    return text.encode("utf-8", "surrogatepass")


def _changed(draw: Random, value: Any) -> Any:
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        kind = draw.randrange(12)
        if kind == 0:
            del value[key]
        elif kind == 1 and isinstance(value, list):
            value.append(value[key])
        elif kind == 2 and isinstance(value, dict):
            value[draw.choice(("", "a", "7", "classes"))] = value.pop(key)
        else:
            value[key] = _changed(draw, value[key])
        return value
    return [value] if draw.random() < 0.1 else copy.deepcopy(draw.choice(ODD))


def change_table(draw: Random, content: bytes) -> bytes:
    """Fields and rows of a CSV text changed; now and then only bytes."""
    if draw.random() < 0.3:
        return change_bytes(draw, content)
    rows = list(csv.reader(io.StringIO(content.decode())))
    for _ in range(draw.choice((1, 1, 3))):
        if not rows:
            break
        row = draw.choice(rows)
        if draw.random() < 0.2:
            rows.remove(row)
        elif row:
            row[draw.randrange(len(row))] = str(draw.choice(ODD))[:500]
        if draw.random() < 0.1:
            row.append("more")
    made = io.StringIO()
    csv.writer(made, quoting=draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))).writerows(rows)
    return made.getvalue().encode("utf-8", "surrogatepass")


def change_header(draw: Random, content: bytes) -> bytes:
    """The header of a safetensors file, its length, or bytes."""
    if draw.random() < 0.25:
        return change_bytes(draw, content)
    length = struct.unpack("<Q", content[:8])[0]
    header = change_json(draw, content[8 : 8 + length])
    claimed = len(header) if draw.random() < 0.9 else draw.choice((0, 1, len(header) - 1, 2**32, 2**63, 2**64 - 1))
    return struct.pack("<Q", claimed) + header + content[8 + length :]


def attempt(place: Workplace, name: str, draw: Random) -> str:
    """Damage one file, read it, put the file back; return "read" or "refused". Raises what is neither."""
    path, change, read = place.readers()[name]
    whole = path.read_bytes()
    try:
        path.write_bytes(change(draw, whole))
        read()
        return "read"
    except UserError:
        return "refused"
    finally:
        path.write_bytes(whole)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", help="repeat one input, as `reader:number`")
    given = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(folder))
        if given.seed:
            print(attempt(place, given.seed.partition(":")[0], Random(given.seed)))
            return 0
        end, number = time.monotonic() + 60 * given.minutes, 0
        while time.monotonic() < end:
            for name in place.readers():
                seed = f"{name}:{number}"
                try:
                    counts.setdefault(name, Counter())[attempt(place, name, Random(seed))] += 1
                except Exception:
                    traceback.print_exc()
                    print(f"\nnot one of our errors: python -m benchmarks.fuzz --seed '{seed}'")
                    return 1
            number += 1
    total = sum(map(sum, (one.values() for one in counts.values())))
    found = {name: {"inputs": sum(one.values()), "refused": one["refused"]} for name, one in counts.items()}
    record = {"command": f"python -m benchmarks.fuzz --minutes {given.minutes:g}", "inputs": total, "readers": found}
    guided = json.loads(OUT.read_text(encoding="utf-8")).get("guided") if OUT.is_file() else None
    OUT.write_text(json.dumps({**record, "other_errors": 0, "guided": guided}, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
