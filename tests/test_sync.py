"""`python -m kd.sync`: what is found, what is handed to `wandb sync`, and what is said about it."""

import json
import stat
import sys
from pathlib import Path

import pytest

from kd import sync
from kd.schema import LoggerConfig
from kd.tracking import server
from kd.tracking.backend import Run
from kd.tracking.wandb import Wandb

#: writes down what it was given and marks every run but those it is told to fail at
FAKE = """#!{python}
import json, os, pathlib, sys, time
command, option, *runs = sys.argv[1:]
assert option == "--include-online"
with open("{log}", "a") as log:
    log.write(json.dumps([command, *runs]) + "\\n")
for run in map(pathlib.Path, runs):
    if "crashes" in run.name:
        sys.exit("panic: cannot go on")
    if "hangs" in run.name:
        time.sleep(60)
    if "fails" not in run.name:
        (run / (run.name.removeprefix("offline-") + ".wandb.synced")).touch()
print("wandb: one line per run")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A `wandb` on the PATH, a login, and a server that answers; returns the calls so far."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    program = folder / "wandb"
    program.write_text(FAKE.format(python=sys.executable, log=log))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(server, "reachable", lambda: True)
    monkeypatch.chdir(tmp_path)
    return lambda: [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def offline(run: str, label: str, *, complete: bool = True) -> Path:
    """An offline run's folder below the run folder `outputs/<run>`."""
    folder = Path("outputs", run, "wandb", f"offline-run-20260101_000000-{label}").absolute()
    folder.mkdir(parents=True)
    if complete:
        (folder.parent / "complete").touch()
    return folder


def test_complete_runs_are_uploaded_and_never_again(fake, capsys):
    student, teacher = offline("a", "student"), offline("a", "teacher")
    cut = offline("b", "student", complete=False)
    assert sync.main([]) == 0
    said = capsys.readouterr().out
    assert fake() == [["sync", str(student), str(teacher)]]
    assert said.count("uploaded    ") == 2
    assert "3 offline runs: 2 uploaded, 0 uploaded before, 1 of unfinished runs left" in said

    assert sync.main(["outputs/b", "--unfinished"]) == 0
    assert fake()[1:] == [["sync", str(cut)]]
    assert sync.main(["outputs", "--unfinished"]) == 0
    assert len(fake()) == 2
    assert "3 offline runs: 0 uploaded, 3 uploaded before." in capsys.readouterr().out


def test_many_runs_go_in_batches(fake, monkeypatch):
    monkeypatch.setattr(sync, "BATCH", 2)
    runs = [offline(str(number), "student") for number in range(5)]
    assert sync.main(["outputs"]) == 0
    assert [call[1:] for call in fake()] == [[str(run) for run in batch] for batch in (runs[:2], runs[2:4], runs[4:])]


def test_a_failed_upload_is_said_and_tried_by_the_next_call(fake, capsys):
    offline("a", "fails"), offline("b", "student")
    assert sync.main([]) == 6
    told = capsys.readouterr()
    assert "failed      outputs/a/wandb/offline-run-20260101_000000-fails" in told.out
    assert "2 offline runs: 1 uploaded, 1 failed (the same command tries them again)" in told.out
    assert told.err.count("wandb: one line per run") == 1
    assert sync.main([]) == 6
    assert len(fake()[1]) == 2  # only the one that failed


def test_a_crash_over_one_run_stops_no_other(fake, capsys):
    bad, *good = offline("a", "crashes"), offline("b", "student"), offline("c", "student")
    assert sync.main([]) == 6
    assert [call[1:] for call in fake()][1:] == [[str(bad)], *([str(run)] for run in good)]
    assert "panic: cannot go on" in capsys.readouterr().err
    assert all(sync.uploaded(run) for run in good)


def test_an_upload_that_hangs_is_ended(fake, capsys):
    offline("a", "hangs")
    assert sync.main(["--timeout", "1"]) == 6
    assert "did not end within 1 s" in capsys.readouterr().err


def test_list_shows_real_runs_and_uploads_nothing(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY")
    folder = tmp_path / "outputs" / "real"
    folder.mkdir(parents=True)
    for label, evaluated in (("student", True), ("teacher", False)):
        backend = Wandb(LoggerConfig(kind="wandb"), folder, "offline")
        arms = {label: {"test": {"confusion": [[1]], "per_class_accuracy": [1.0]}}}
        run = Run(label, label, f"real-{label}", "group", [], {}, {"T": 4})
        backend.start(run)
        backend.log(run, {f"{label}/train/loss": 1.0, "epoch": 0}, 3)
        assert sync.main(["--list"]) == 0
        assert "unfinished  outputs/real/wandb/offline-run-" in capsys.readouterr().out
        if evaluated:
            backend.finish(run, {}, {"arms": arms, "data": {"classes": ["a"]}})
        backend.close(complete=evaluated)
        assert sync.main(["--list"]) == 0
        assert ("1 to upload" in capsys.readouterr().out) is evaluated
    assert fake() == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nowhere"], 2, "no folder nowhere"),
        (["outputs", "--timeout", "0"], 2, "above 0, but got 0"),
    ],
)
def test_bad_input(fake, capsys, arguments, status, words):
    offline("a", "student")
    assert sync.main(arguments) == status
    assert words in capsys.readouterr().err


def test_without_a_login_nothing_is_tried(fake, capsys, monkeypatch, tmp_path):
    offline("a", "student")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert sync.main([]) == 2
    assert "wandb login" in capsys.readouterr().err
    assert fake() == []


def test_an_unreachable_server_is_a_failure(fake, capsys, monkeypatch):
    offline("a", "student")
    monkeypatch.setattr(server, "reachable", lambda: False)
    assert sync.main([]) == 6
    assert "cannot be reached. Nothing was uploaded" in capsys.readouterr().err
    assert fake() == []
