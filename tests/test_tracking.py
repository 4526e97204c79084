"""Weights & Biases: what is logged, read back from the offline log; and never a prompt or a hang."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd import tracking
from kd.errors import ConfigError
from kd.schema import LoggerConfig
from tests.commands import Command


@pytest.fixture(autouse=True)
def logged_out(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text("")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def inspect(folder: Path, *options: str) -> str:
    """Read an offline run back with W&B's own reader."""
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", *options, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_offline_runs_hold_the_configuration_curves_and_tables(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    done = command("trainer.max_epochs=2", "data.train_limit=192", "logger=wandb", "logger.tags=[mine]")
    assert done.status == 0, done.err
    assert "wandb sync" in done.out
    offline = sorted((tmp_path / "outputs").rglob("offline-run-*"))
    summaries = [json.loads(inspect(folder, "--summary")) for folder in offline]
    runs = {summary["config"]["arm"]: (summary, folder) for summary, folder in zip(summaries, offline, strict=True)}
    assert set(runs) == {"teacher", "baseline", "student"}

    result = json.loads(next((tmp_path / "outputs").rglob("result.json")).read_text())
    for arm, (summary, folder) in runs.items():
        assert summary["config"]["method"]["temperature"] == 4
        assert summary["config"]["store_key"] == result["arms"][arm]["store_key"]
        logged = summary["summary"]
        assert logged[f"{arm}/test/accuracy"] == pytest.approx(result["arms"][arm]["test"]["accuracy"])
        assert {f"{arm}/train/loss", f"{arm}/train/ce", f"{arm}/train/lr", f"{arm}/val/accuracy"} <= set(logged)
        records = inspect(folder)
        assert '"run_group":"digits_kd"' in records
        assert f'"job_type":"{arm}"' in records
        assert '"mine"' in records
        tables = sorted((folder / "files" / "media" / "table").rglob("*.json"))
        by_columns = {tuple(table["columns"]): table["data"] for table in map(json.loads, map(Path.read_text, tables))}
        confusion = by_columns[("actual", "predicted", "images")]
        assert sum(count for _, _, count in confusion) == 397
        assert len(by_columns[("class", "accuracy")]) == 10
    assert "baseline/test/accuracy" in runs["student"][0]["summary"]


def test_without_a_key_there_is_a_hint_and_no_log(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    done = command("trainer.max_epochs=1", "data.train_limit=64")
    assert done.status == 0, done.err
    assert sum("W&B" in line for line in done.out.splitlines()) == 1
    assert not list((tmp_path / "outputs").rglob("wandb"))


def test_the_hint_reaches_the_user_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "mode", lambda _: ("off", "W&B: pip install [wandb]"))
    done = Command(tmp_path, monkeypatch, capsys)("trainer.max_epochs=1", "data.train_limit=64")
    assert "pip install [wandb]" in done.out


def test_an_unreachable_server_is_found_within_seconds(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with socket.socket() as listener:  # bound but not listening: connections are refused
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        started = time.monotonic()
        mode, hint = tracking.mode(LoggerConfig(kind="wandb"))
    assert time.monotonic() - started < 2 * tracking.REACH_TIMEOUT_S
    assert mode == "offline"
    assert "127.0.0.1 cannot be reached" in hint


def test_the_mode_follows_from_key_server_and_wish(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "_reachable", lambda: True)
    assert tracking.mode(LoggerConfig(kind="auto"))[0] == "off"
    assert tracking.mode(LoggerConfig(kind="wandb"))[0] == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert tracking.mode(LoggerConfig(kind="auto"))[0] == "online"
    assert tracking.mode(LoggerConfig(kind="csv"))[0] == "off"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracking.mode(LoggerConfig(kind="auto"))[0] == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking.mode(LoggerConfig(kind="wandb"))[0] == "off"


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    mode, hint = tracking.mode(LoggerConfig(kind="auto"))
    assert mode == "off"
    assert "pip install wandb" in hint
    with pytest.raises(ConfigError, match=r"pip install wandb"):
        tracking.mode(LoggerConfig(kind="wandb"))
