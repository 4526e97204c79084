"""W&B's server is away at the start, in the middle or at the end: the run ends well, and what is missing is named."""

import sys
import threading
import time

import pytest
import wandb

from kd import sync
from kd.curves import read_metrics
from kd.schema import LoggerConfig
from kd.tracking import server
from kd.tracking import wandb as backend
from kd.tracking.backend import Run
from kd.tracking.wandb import Wandb
from tests.commands import Command
from tests.dashboards import losses
from tests.wandb_server import WandbServer

SHORT = (
    "trainer.max_epochs=1", "data.train_limit=192", "latency=false", "teacher=random", "logger=wandb",
    "model@student=mlp_16", "model@teacher.model=mlp_16", "hydra.run.dir=run",
)  # fmt: skip
ARMS = ("teacher", "student")


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A server that works so far, a login for it, and little patience."""
    running = WandbServer()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", running.url)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(backend, "INIT_TIMEOUT_S", 4.0)
    monkeypatch.setattr(backend, "FINISH_TIMEOUT_S", 3.0)
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # what W&B's library remembers of another server
    yield running
    running.close()
    wandb.teardown()


def run(label: str) -> Run:
    return Run(label, label, f"run-{label}", "group", [], {}, {"T": 4})


def logged(folder, mode="online", *, meanwhile=lambda: None) -> Wandb:
    """What a run of two arms logs; something happens in the middle."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = Wandb(LoggerConfig(kind="wandb"), folder, mode)
    for label in ARMS:
        logs.start(run(label))
        logs.log(run(label), {f"{label}/train/loss": 1.0, "epoch": 0}, 3)
    meanwhile()
    for label in ARMS:
        logs.log(run(label), {f"{label}/train/loss": 0.5, "epoch": 1}, 7)
    logs.close(complete=True)
    return logs


def test_with_a_server_that_works_nothing_is_left_to_upload(served, tmp_path, capsys):
    logs = logged(tmp_path / "run")
    assert logs.trouble == ""
    values = [
        (row[f"{arm}/train/loss"], row["_step"]) for arm in ARMS for row in served.rows if f"{arm}/train/loss" in row
    ]
    assert values == [(1.0, 3), (0.5, 7)] * 2
    assert sync.main(["run", "--list"]) == 0
    assert "0 offline runs: 0 to upload" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["silent", "gone"])
def test_a_server_that_goes_away_in_the_middle_is_named_and_its_runs_can_be_uploaded(served, tmp_path, capsys, end):
    logs = logged(tmp_path / "run", meanwhile=served.silent.set if end == "silent" else served.go_away)
    assert logs.trouble == "W&B: 127.0.0.1 has not taken all of teacher, student"
    assert sync.main(["run", "--list"]) == 0
    said = capsys.readouterr().out
    assert said.count("upload      run/wandb/run-") == 2
    if end == "silent":
        served.silent.clear()
        served.rows.clear()
        wandb.teardown()
        monkey = [sys.executable, "-m", "wandb"]
        assert [problem for _, problem in sync.upload([one.folder for one in sync.find([tmp_path])], monkey, 60)] == [
            ""
        ]
        assert {0.5, 1.0} == {row[name] for row in served.rows for name in row if name.endswith("train/loss")}
        assert sync.main(["run"]) == 0
        assert "2 uploaded before" in capsys.readouterr().out


def test_a_log_that_is_begun_anew_leaves_nothing_of_the_old_one_to_upload(served, tmp_path, capsys):
    logged(tmp_path / "run", meanwhile=served.silent.set)
    logged(tmp_path / "run", "offline")
    assert sync.main(["run", "--list"]) == 0
    assert capsys.readouterr().out.count("upload      run/wandb/offline-run-") == 2


def test_a_run_whose_server_never_answers_logs_offline_and_says_so(served, tmp_path, monkeypatch, capsys):
    """It accepts the connection, as a server behind a broken proxy does, so that it passes for reachable."""
    served.silent.set()
    assert server.reachable()
    done = Command(tmp_path, monkeypatch, capsys)(*SHORT)
    assert done.status == 0, done.err
    assert "W&B: the server does not answer (" in done.out
    assert "upload with: python -m kd.sync" in done.out
    folder = tmp_path / "run"
    assert (folder / "result.json").exists()
    assert not list(folder.glob("wandb/run-*")), "nothing is left of the attempt"
    truth = [row for row in read_metrics(folder / "metrics.csv") if row["name"] == "train/loss"]
    found = losses("wandb", folder)
    assert set(found) == {"baseline", "student"} == {row["arm"] for row in truth}
    assert sync.main(["run", "--list"]) == 0
    assert "2 to upload" in capsys.readouterr().out


def test_a_run_whose_server_goes_away_at_the_end_ends_well(served, tmp_path, monkeypatch, capsys):
    finish = Wandb.finish
    monkeypatch.setattr(Wandb, "finish", lambda self, *given: (served.silent.set(), finish(self, *given)))
    done = Command(tmp_path, monkeypatch, capsys)(*SHORT)
    assert done.status == 0, done.err
    assert "W&B: 127.0.0.1 has not taken all of baseline, student; upload with: python -m kd.sync" in done.out
    assert (tmp_path / "run/result.json").exists() and (tmp_path / "run/report.html").exists()


def test_an_error_of_the_library_gives_the_dashboard_up_and_names_what_is_left(served, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Wandb, "log", lambda self, *_: served.silent.set() or 1 / 0)
    done = Command(tmp_path, monkeypatch, capsys)(*SHORT)
    assert done.status == 0, done.err
    assert "upload with: python -m kd.sync" in done.out
    assert "division by zero; metrics.csv has everything" in done.out


def test_a_name_that_is_looked_up_for_ever_is_not_waited_for(monkeypatch):
    """The lookup itself has no timeout."""
    never = threading.Event()

    def look_up(*_, **__):
        never.wait(60)
        raise OSError("no such name")

    monkeypatch.setattr(server.socket, "create_connection", look_up)
    started = time.monotonic()
    assert not server.reachable(0.2)
    assert time.monotonic() - started < 30
    never.set()
