"""A run that is cut off: the same command continues it, and ends as if nothing had happened."""

import csv
import json
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kd import cli
from kd.run import run
from tests.commands import QUICK, Command, started, wait_for

ROOT = Path(__file__).parents[1]
# dropout and augmentation on, so that a wrong random state would show; 40 steps an epoch, so that most cuts are in one
LONG = (
    *("trainer.max_epochs=12", "data.train_limit=320", "data.batch_size=8", "data.augment=shift"),
    *("student.dropout=0.2", "logger=csv", "latency=false"),
)
TIMES = ("wall_s", "train_s", "images_per_s")


def cut_off(folder: Path, sign: int, *arguments: str) -> tuple[int, str]:
    """Start a run and send it a signal while it trains a network, at a moment that nobody knows."""
    process = started(folder, *LONG, *arguments)
    wait_for(process, lambda: list(folder.glob("outputs/digits_kd/*/checkpoints/*.ckpt")))
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(sign)
    errors = process.communicate(timeout=60)[1]
    return process.returncode, errors


def outcome(folder: Path) -> tuple[dict, list, dict]:
    """What must not depend on an interruption: weights, curves, result.json but for its times."""
    run = next(folder.glob("outputs/digits_kd/*/result.json")).parent
    with (run / "metrics.csv").open() as file:
        rows = list(csv.reader(file))
    result = json.loads((run / "result.json").read_text())
    for block in (result, *result["arms"].values()):
        for name in TIMES:
            block.pop(name, None)
    return load_file(run / "student.safetensors"), rows, result


def assert_as_if_nothing_had_happened(folder: Path, whole: Path) -> None:
    weights, rows, result = outcome(folder)
    expected_weights, expected_rows, expected_result = outcome(whole)
    assert all(weights[name].equal(expected_weights[name]) for name in expected_weights)
    assert rows == expected_rows
    assert result == expected_result


def test_a_run_that_ended_between_its_result_and_its_page_gets_the_page(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)

    def cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kd.report.write_page", cut)
        assert command(*QUICK, "hydra.run.dir=run").status == 130
    assert (tmp_path / "run" / "result.json").is_file()
    done = command(*QUICK, "hydra.run.dir=run")
    assert done.status == 0, done.err
    assert "finished before" in done.out
    assert "student" in (tmp_path / "run" / "report.html").read_text()


CRD = ("method=crd", "trainer.max_epochs=4")  # a method with memories


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder in which an uninterrupted run was done, by its arguments."""
    done: dict[tuple[str, ...], Path] = {}

    def get(*arguments: str) -> Path:
        if arguments not in done:
            done[arguments] = tmp_path_factory.mktemp("whole")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("signal.signal", lambda *_: None)
                patch.chdir(done[arguments])
                patch.setattr("sys.argv", ["kd.run", *LONG, *arguments])
                with pytest.raises(SystemExit, match="0"):
                    cli.entry(run)
        return done[arguments]

    return get


@pytest.mark.parametrize("method", [(), CRD], ids=["kd", "crd"])
def test_after_kill_9_the_same_command_ends_bit_identical(whole, tmp_path, monkeypatch, capsys, method):
    arguments = (*method, "trainer.checkpoint_minutes=0.0001")
    for _ in range(2):
        assert cut_off(tmp_path, signal.SIGKILL, *arguments)[0] == -signal.SIGKILL
    done = Command(tmp_path, monkeypatch, capsys)(*LONG, *arguments)
    assert done.status == 0, done.err
    assert "continuing after epoch" in done.out
    assert_as_if_nothing_had_happened(tmp_path, whole(*method))


@pytest.mark.parametrize(
    ("sign", "status", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Term")]
)
def test_a_signal_saves_and_ends_with_its_own_status(whole, tmp_path, monkeypatch, capsys, sign, status, word):
    left, errors = cut_off(tmp_path, sign, "trainer.checkpoint_minutes=null")
    assert left == status, errors
    assert word in errors
    assert "continues the run" in errors
    assert "Traceback" not in errors
    done = Command(tmp_path, monkeypatch, capsys)(*LONG)
    assert done.status == 0, done.err
    assert "continuing after epoch" in done.out
    assert_as_if_nothing_had_happened(tmp_path, whole())
