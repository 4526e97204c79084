"""`python -m benchmarks.fuzz_guided --minutes 5`: the readers of `benchmarks.fuzz` again, guided by coverage (atheris).

libFuzzer keeps the inputs that reach new branches of kd and changes these further, by the same changes that know the
format, and by its own that do not. Each reader has a process of its own and its share of the minutes. Needs atheris:
`.venv/bin/uv pip install --python .venv/bin/python atheris`. Adds the counts to docs/fuzz.json; an error that is not
ours stops it, and the input that caused it is kept and named.
"""

import argparse
import csv
import importlib.util
import json
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

LEAST_INPUT = 4096  # bytes that an input may have at least; else so many times the valid file's
TIMES_VALID = 4


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """Fuzz one reader in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["kd"]):
        from benchmarks.fuzz import Workplace
        from kd.errors import UserError
    path, change, read = Workplace(folder / "place").readers()[name]
    valid = path.read_bytes()
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "valid").write_bytes(valid)

    def one_input(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read()
        except UserError:
            return

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        try:
            return change(draw, bytes(data))[:most]
        except (ValueError, RecursionError, struct.error, csv.Error):  # no longer of the format that is changed
            return bytes(atheris.Mutate(data, most))

    most = max(LEAST_INPUT, TIMES_VALID * len(valid))
    options = [f"-max_total_time={seconds}", f"-max_len={most}", f"-artifact_prefix={folder}/", "-seed=1", str(corpus)]
    atheris.Setup([sys.argv[0], *options], one_input, custom_mutator=mutate)
    atheris.Fuzz()


def fuzzed(name: str, minutes: float) -> dict[str, int] | None:
    """Fuzz one reader in a process of its own. Returns the counts; None if another error than ours came out."""
    folder = Path(tempfile.mkdtemp(prefix="kd-fuzz-"))
    own = ["--reader", name, "--folder", str(folder), "--minutes", f"{minutes}"]
    done = subprocess.run([sys.executable, "-m", __spec__.name, *own], capture_output=True, text=True)
    runs, covered = re.search(r"Done (\d+) runs", done.stderr), re.findall(r"cov: (\d+)", done.stderr)
    if done.returncode or runs is None:
        print(f"{done.stderr[-6000:]}\n{name}: not one of our errors; the input is in {folder}", file=sys.stderr)
        return None
    shutil.rmtree(folder)
    return {"inputs": int(runs[1]), "edges": int(covered[-1]) if covered else 0}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_guided", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all readers together")
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("atheris is missing: .venv/bin/uv pip install --python .venv/bin/python atheris")
    if given.reader:
        fuzz(given.reader, given.folder, round(60 * given.minutes))
        return 0
    from benchmarks.fuzz import OUT, Workplace

    with tempfile.TemporaryDirectory() as folder:
        names = list(Workplace(Path(folder)).readers())
    found = {}
    for name in names:
        if (counts := fuzzed(name, given.minutes / len(names))) is None:
            return 1
        found[name] = counts
        print(f"{name:<16}{counts['inputs']:>10,} inputs", flush=True)
    record = json.loads(OUT.read_text(encoding="utf-8"))
    about = {
        "command": f"python -m {__spec__.name} --minutes {given.minutes:g}",
        "inputs": sum(counts["inputs"] for counts in found.values()),
        "readers": found,
        "other_errors": 0,
    }
    OUT.write_text(json.dumps({**record, "guided": about}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
