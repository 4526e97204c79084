"""Kills runs at random moments until they are done, and compares them with one that was left alone.

    python -m benchmarks.soak --kills 200

Each round starts the same command in a folder of its own again and again, each time kills it (SIGKILL; every fourth
time SIGTERM) at a random moment, and when it ends by itself compares weights, curves and result.json, but for times,
with those of an uninterrupted run. Writes docs/soak.json. `--seed` makes the moments repeatable, not what the machine
does in between.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from kd import checkpoints
from kd.cli import entry
from kd.files import METRICS, RESULT, write_json
from kd.run import run

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "soak.json"
#: dropout and augmentation on; 40 steps an epoch, a checkpoint every 30 ms
COMMAND = (
    *(
        "trainer.max_epochs=20",
        "data.train_limit=320",
        "data.batch_size=8",
        "data.augment=shift",
        "student.dropout=0.2",
    ),
    *("logger=csv", "latency=false", "trainer.checkpoint_minutes=0.0005", "hydra.run.dir=run", "store.root=store"),
)
METHODS = ("kd", "crd", "mutual", "hint")
SHORTER = {"crd": 3, "mutual": 10, "hint": 10}  # epochs of methods that need networks with layers, or memories
TIMES = ("wall_s", "train_s", "images_per_s")
PATIENCE_S = 900
LATEST_S = 0.7  # of a kill, after the first checkpoint that a process writes
ANYWHERE_TIMES = 15  # as long after its start, for kills before and after the trainings
#: processes that begin as copies of one that has imported everything: otherwise the imports take most of a soak
FORKS = multiprocessing.get_context("forkserver")
IMPORTED = ("kd.run", "kd.build", "kd.examples", "kd.report", "kd.result", "kd.dry_run", "kd.evaluate", "kd.train")


def arguments(method: str) -> list[str]:
    return [*COMMAND, f"method={method}", *([f"trainer.max_epochs={SHORTER[method]}"] if method in SHORTER else [])]


class Started:
    """`python -m kd.run` for a method in a folder, in a process of its own whose imports are done already."""

    def __init__(self, folder: Path, method: str) -> None:
        self.log = folder / "said"
        self.process = FORKS.Process(target=_run, args=(folder, arguments(method), self.log))
        self.process.start()

    def is_running(self) -> bool:
        return self.process.is_alive()

    def send_signal(self, sign: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, sign)

    def end(self) -> tuple[int, str]:
        """Wait for the exit status (below 0: the signal that ended it), and return it with what was printed."""
        self.process.join(PATIENCE_S)
        assert self.process.exitcode is not None, f"not done after {PATIENCE_S} s"
        return self.process.exitcode, self.log.read_text(encoding="utf-8") if self.log.exists() else ""


def _run(folder: Path, given: list[str], log: Path) -> None:
    """What a started process does: the command, as from a shell."""
    os.chdir(folder)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["kd.run", *given]
    entry(run)


def outcome(run: Path) -> tuple[dict[str, Any], list[list[str]], dict[str, Any]]:
    """What must not depend on kills: weights, curves, result.json without its times."""
    result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    for block in (result, *result["arms"].values()):
        for name in TIMES:
            block.pop(name, None)
    with (run / METRICS).open(newline="") as file:
        return load_file(run / "student.safetensors"), list(csv.reader(file)), result


def is_same(run: Path, whole: Path) -> bool:
    (weights, *rest), (expected, *expected_rest) = outcome(run), outcome(whole)
    same = weights.keys() == expected.keys() and all(weights[name].equal(expected[name]) for name in expected)
    return same and rest == expected_rest


def modified(file: Path) -> float:
    """When a file was written; 0 if it has just been moved away."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def wait_for_a_moment(started: Started, folder: Path, moments: random.Random) -> None:
    """Somewhere in the training; every sixth time anywhere since the start."""
    began = time.time()
    anywhere, later = moments.random() < 1 / 6, moments.uniform(0, LATEST_S)
    while started.is_running():
        saved = any(modified(file) > began for file in folder.glob("run/checkpoints/*.ckpt"))
        if anywhere or saved:
            break
        time.sleep(0.005)
    until = time.monotonic() + (ANYWHERE_TIMES * later if anywhere else later)
    while started.is_running() and time.monotonic() < until:
        time.sleep(0.002)


def kill_until_done(folder: Path, method: str, moments: random.Random, record: dict[str, int], kills: int) -> None:
    """One round; after `kills` kills in all the run is left alone."""
    while True:
        started = Started(folder, method)
        is_killed = record["kills"] < kills
        if is_killed:
            wait_for_a_moment(started, folder, moments)
        if is_killed and started.is_running():
            sign = signal.SIGTERM if record["kills"] % 4 == 3 else signal.SIGKILL
            started.send_signal(sign)
            status, said = started.end()
            record["kills"] += 1
            record["terminated"] += sign == signal.SIGTERM
            damaged = [file for file in folder.rglob("*.ckpt") if checkpoints.damage(file) is not None]
            record["corrupt_files"] += len(damaged)
        else:
            status, said = started.end()
        record["resumes"] += said.count("continuing after epoch")
        record["resumes_within_an_epoch"] += said.count(" steps\n")
        if status == 0:
            return
        assert status in (-signal.SIGKILL, -signal.SIGTERM, 143), said


def soak(kills: int, seed: int) -> dict[str, Any]:
    moments = random.Random(seed)
    counted = ("kills", "terminated", "resumes", "resumes_within_an_epoch", "corrupt_files")
    record = dict.fromkeys((*counted, "runs", "bit_identical", "lost_results"), 0)
    with tempfile.TemporaryDirectory(prefix="kd-soak-") as place:
        whole: dict[str, Path] = {}
        while record["kills"] < kills:
            method = METHODS[record["runs"] % len(METHODS)]
            if method not in whole:
                whole[method] = Path(place) / f"whole-{method}"
                whole[method].mkdir()
                status, said = Started(whole[method], method).end()
                assert status == 0, said
            folder = Path(place) / f"run-{record['runs']}"
            folder.mkdir()
            kill_until_done(folder, method, moments, record, kills)
            record["runs"] += 1
            if (folder / "run" / RESULT).is_file():
                record["bit_identical"] += is_same(folder / "run", whole[method] / "run")
            else:
                record["lost_results"] += 1
            print(json.dumps(record), flush=True)
    return {"command": f"python -m benchmarks.soak --kills {kills} --seed {seed}", "methods": METHODS, **record}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", type=Path, default=TARGET)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    FORKS.set_forkserver_preload(list(IMPORTED))
    found = soak(given.kills, given.seed)
    write_json(given.target, found)
    sys.exit(0 if found["bit_identical"] == found["runs"] and not found["corrupt_files"] + found["lost_results"] else 1)
