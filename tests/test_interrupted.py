"""A run that is cut off: the same command continues it, and ends as if nothing had happened."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.commands import Command

ROOT = Path(__file__).parents[1]
# dropout and augmentation on, so that a wrong random state would show
LONG = ("trainer.max_epochs=40", "data.train_limit=320", "data.augment=shift", "student.dropout=0.2", "logger=csv")


def cut_off(folder: Path, sign: int, *arguments: str) -> tuple[int, str]:
    """Start a run and send it a signal once a network is some epochs into its training."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kd.run", *LONG, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that starts the tests in the background has them, and what they start, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    started = time.monotonic()
    while not list(folder.glob("outputs/digits_kd/*/checkpoints/*.ckpt")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() - started < 120
        time.sleep(0.01)
    process.send_signal(sign)
    errors = process.communicate(timeout=60)[1]
    return process.returncode, errors


def outcome(folder: Path) -> tuple[dict, list, dict]:
    """What must not depend on an interruption: weights, curves, test results."""
    run = next(folder.glob("outputs/digits_kd/*/result.json")).parent
    with (run / "metrics.csv").open() as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    arms = json.loads((run / "result.json").read_text())["arms"]
    return load_file(run / "student.safetensors"), rows, {name: arm["test"] for name, arm in arms.items()}


@pytest.mark.parametrize("method", ["kd", "crd"])  # a method without a state of its own, and one with memories
def test_after_kill_9_the_same_command_ends_bit_identical(tmp_path, tmp_path_factory, monkeypatch, capsys, method):
    arguments = (f"method={method}", "trainer.max_epochs=20") if method == "crd" else ()
    uninterrupted = Command(tmp_path_factory.mktemp("uninterrupted"), monkeypatch, capsys)
    assert uninterrupted(*LONG, *arguments).status == 0
    status, _ = cut_off(tmp_path, signal.SIGKILL, *arguments)
    assert status == -signal.SIGKILL
    done = Command(tmp_path, monkeypatch, capsys)(*LONG, *arguments)
    assert done.status == 0, done.err
    assert "continuing after epoch" in done.out
    weights, rows, tests = outcome(tmp_path)
    expected_weights, expected_rows, expected_tests = outcome(uninterrupted.folder)
    assert all(weights[name].equal(expected_weights[name]) for name in expected_weights)
    assert rows == expected_rows
    assert tests == expected_tests


@pytest.mark.parametrize(
    ("sign", "status", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Term")]
)
def test_a_signal_ends_with_its_own_status(tmp_path, sign, status, word):
    left, errors = cut_off(tmp_path, sign)
    assert left == status, errors
    assert word in errors
    assert "continues the run" in errors
    assert "Traceback" not in errors
