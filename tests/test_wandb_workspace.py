"""The saved W&B dashboard: its specification, and that every name in it is one that a run logs."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kd import wandb_workspace
from kd.tracking import server
from tests.commands import Command
from tests.dashboards import wandb_summary

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def logged_out(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def specification(capsys, *arguments: str) -> dict:
    assert wandb_workspace.main(["me/kd", "--dry-run", *arguments]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["entity"], content["project"]) == ("me", "kd")
    return content["spec"]["section"]


def panels(section: dict) -> dict[str, list[dict]]:
    sections = section["panelBankConfig"]["sections"]
    return {one["name"]: [{"type": p["viewType"], **p["config"]} for p in one["panels"]] for one in sections}


def test_the_views_that_a_sweep_needs(capsys):
    found = panels(specification(capsys))
    first = found["T x alpha"][0]
    assert (first["type"], first["xAxis"], first["yAxis"]) == ("Scatter Plot", "config:T.value", "config:alpha.value")
    assert first["zAxis"] == "summary:student/test/accuracy"
    assert [point["offset"] for point in first["customGradient"]] == [0, 50, 100]
    assert [column["accessor"] for column in found["Parallel coordinates"][0]["columns"]] == [
        *(f"config:{name}.value" for name in ("method", "T", "alpha", "seed")),
        "summary:student/val/selected_accuracy",
        "summary:student/test/accuracy",
    ]
    pooled = found["Accuracy against T, seeds pooled"][0]
    assert (pooled["type"], pooled["groupBy"], pooled["groupAgg"]) == ("Bar Chart", "T.value", "mean")
    assert pooled["metrics"] == ["student/test/accuracy"]


def test_the_run_table_has_students_only_by_sweep_with_their_columns(capsys):
    section = specification(capsys)
    (runs,) = section["runSets"]
    (chosen,) = runs["filters"]["filters"]
    assert (chosen["key"], chosen["op"], chosen["value"]) == ({"section": "run", "name": "jobType"}, "=", "student")
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    assert {"config:T.value", "config:seed.value", "summary:student/test/accuracy"} <= set(
        runs["runFeed"]["columnPinned"]
    )
    assert section["settings"]["useRunsTableGroupingInPanels"] is False  # one point for each run, not for each sweep


def test_every_name_is_one_that_a_run_logs(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    done = command("trainer.max_epochs=1", "data.train_limit=64", "latency=false", "logger=wandb")
    assert done.status == 0, done.err
    student = wandb_summary(next(tmp_path.rglob("offline-run-*-student")))
    logged = set(student["summary"])
    for arguments in ([], ["--like", str(tmp_path / "outputs")]):
        section = specification(capsys, *arguments)
        text = json.dumps(section)
        settings = set(re.findall(r'"config:(\w+)\.value"', text)) | set(re.findall(r'"groupBy": "(\w+)\.value"', text))
        assert settings == {"T", "alpha", "beta", "seed", "method"}
        assert settings <= set(student["config"])
        metrics = set(re.findall(r'"summary:([^"]+)"', text))
        shown = [panel for one in panels(section).values() for panel in one]
        metrics |= {metric for panel in shown for metric in panel.get("metrics", [])}
        metrics |= {panel["xAxis"] for panel in shown if panel["type"] == "Run History Line Plot"}
        assert len(metrics) >= 8
        assert metrics <= logged
        if not arguments:
            (pattern,) = [panel["metricRegex"] for panel in shown if "metricRegex" in panel]
            assert sum(bool(re.fullmatch(pattern, name)) for name in logged) == 10
        else:
            assert sum("student/test/class_accuracy/" in name for name in metrics) == 10


def test_without_a_login_the_specification_is_printed_and_the_status_says_so(capsys):
    assert wandb_workspace.main(["me/kd"]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out)["entity"] == "me"
    assert "no W&B login" in told.err


@pytest.mark.parametrize("given", ["kd", "a/b/c", "/kd", "me/", "me/k d", "me/kd?x"])
def test_a_bad_project(capsys, given):
    assert wandb_workspace.main([given, "--dry-run"]) == 2
    told = capsys.readouterr()
    assert "ENTITY/PROJECT" in told.err
    assert repr(given) in told.err
    assert told.out == ""


def test_other_bad_input(capsys, monkeypatch, tmp_path):
    assert wandb_workspace.main(["me/kd", "--dry-run", "--like", str(tmp_path)]) == 2
    assert "No finished run" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert wandb_workspace.main(["me/kd", "--dry-run"]) == 2
    assert "pip install wandb-workspaces" in capsys.readouterr().err


def test_an_unreachable_server_is_found_within_seconds(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    started = time.monotonic()
    with socket.socket() as listener:  # bound but not listening: connections are refused
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert wandb_workspace.main(["me/kd"]) == 6
    assert time.monotonic() - started < 20
    assert "127.0.0.1 cannot be reached" in capsys.readouterr().err


def test_a_server_that_never_answers_is_given_up(capsys, monkeypatch):
    over = threading.Event()

    class Silent:
        entity, project = "me", "kd"

        def save(self) -> None:
            over.wait(30)

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(server, "reachable", lambda: True)
    monkeypatch.setattr(wandb_workspace, "SAVE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(wandb_workspace, "specification", lambda *_: Silent())
    monkeypatch.setattr(wandb_workspace, "view", lambda _: None)
    assert wandb_workspace.main(["me/kd"]) == 6
    over.set()
    assert "did not answer within 0.1 s" in capsys.readouterr().err


class Server(BaseHTTPRequestHandler):
    """As much of a W&B server as saving a view needs; keeps what it was sent."""

    saved: list[dict] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        content: dict = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            if "upsertView" in asked["query"]:
                self.saved.append(asked["variables"])
                content = {"upsertView": {"view": {"id": "1", "name": asked["variables"]["name"]}, "inserted": True}}
            else:
                content = {"viewer": {"id": "1", "entity": "me", "username": "me", "teams": {"edges": []}}}
        answer = json.dumps({"data": content}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def test_the_dashboard_is_saved_and_its_address_printed():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{listening.server_port}"
        done = subprocess.run(
            [sys.executable, "-m", "kd.wandb_workspace", "me/kd"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address},
            capture_output=True,
            text=True,
            timeout=120,
        )
        listening.shutdown()
    assert done.returncode == 0, done.stderr
    assert f"dashboard: {address}/me/kd?nw=" in done.stdout
    (view,) = Server.saved
    assert (view["entityName"], view["projectName"]) == ("me", "kd")
    assert json.loads(view["spec"])["section"]["runSets"][0]["grouping"]
