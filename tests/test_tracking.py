"""Dashboards: what is logged, read back with their own readers; never a prompt, never a hang, no point twice."""

import importlib.util
import json
import os
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from kd.curves import read_metrics
from kd.saving import Save
from kd.schema import LoggerConfig
from kd.tracking import names, server
from kd.tracking.backend import Run
from kd.tracking.tracking import Tracking
from kd.tracking.wandb import Wandb
from tests.commands import Command, Done
from tests.dashboards import events, losses, trackio_runs, wandb_records, wandb_summary
from tests.test_interrupted import LONG, cut_off

SHORT = ("trainer.max_epochs=2", "data.train_limit=192", "latency=false")
KINDS = ("wandb", "trackio", "tensorboard")


@pytest.fixture(autouse=True)
def logged_out(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text("")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


def succeed(done: Done) -> Done:
    assert done.status == 0, done.err
    return done


def truth(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, training loss) of every arm by metrics.csv."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read_metrics(folder / "metrics.csv"):
        if row["name"] == "train/loss":
            found.setdefault(row["arm"], []).append((int(row["step"]), round(float(row["value"]), 5)))
    return found


def test_the_jobs_of_a_sweep_are_one_group_with_columns_and_all_arms_beside_each_other(command):
    done = succeed(command(*SHORT, "-m", "logger=wandb", "logger.tags=[mine]", "method.temperature=2,8"))
    sweep = next(command.folder.glob("outputs/digits_kd/sweep-*"))
    assert f"python -m kd.sync outputs/digits_kd/{sweep.name}" in done.out
    runs = {}
    for folder in sorted(sweep.rglob("wandb/offline-run-*")):
        assert (folder.parent / "complete").exists()
        about = wandb_summary(folder)
        config, (started, *_) = about["config"], wandb_records(folder, "run")
        assert started["run_group"] == f"digits_kd/{sweep.name}" == config["group"]
        assert started["job_type"] == config["arm"]
        assert {"mine", "kd", config["arm"]} <= set(started["tags"])
        assert config["config"]["method"]["temperature"] == config["T"]
        runs[config["arm"], config["T"]] = (folder, config, about["summary"])
    assert set(runs) == {("teacher", 2), ("baseline", 2), ("student", 2), ("student", 8)}

    for (arm, temperature), (folder, config, logged) in runs.items():
        assert [config[name] for name in names.COLUMNS] == [temperature, 0.5, None, 0, "kd"]
        assert {f"{arm}/train/loss", f"{arm}/train/ce", f"{arm}/train/lr", f"{arm}/val/accuracy"} <= set(logged)
        if arm != "student":
            continue  # a network that the jobs share has its curves; the students know its results
        result = json.loads((folder.parents[1] / "result.json").read_text())
        assert config["store_key"] == result["arms"][arm]["store_key"]
        for other in result["arms"]:
            block = result["arms"][other]
            assert logged[f"{other}/test/accuracy"] == pytest.approx(block["test"]["accuracy"])
            assert logged[f"{other}/val/selected_accuracy"] == pytest.approx(block["val"]["accuracy"])
            per_class = [logged[f"{other}/test/class_accuracy/{name}"] for name in result["data"]["classes"]]
            assert per_class == pytest.approx(block["test"]["per_class_accuracy"])
        student, baseline = (result["arms"][name]["test"]["accuracy"] for name in ("student", "baseline"))
        assert logged["student/test/points_over_baseline"] == pytest.approx(100 * (student - baseline))
        tables = sorted((folder / "files" / "media" / "table").rglob("*.json"))
        by_columns = {tuple(table["columns"]): table["data"] for table in map(json.loads, map(Path.read_text, tables))}
        assert sum(count for _, _, count in by_columns[("actual", "predicted", "images")]) == 397
        assert len(by_columns[("class", "accuracy")]) == 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_cut_off_has_every_point_once_and_the_results_of_all_its_arms(command, monkeypatch, kind):
    save = Save.on_train_epoch_end

    def cut(self, trainer, module):
        if module.arm == "student" and trainer.current_epoch == 2:
            raise KeyboardInterrupt  # the epoch is logged, and not yet saved
        save(self, trainer, module)

    arguments = (*SHORT, "trainer.max_epochs=4", f"logger={kind}", "hydra.run.dir=run")
    with monkeypatch.context() as patch:
        patch.setattr(Save, "on_train_epoch_end", cut)
        assert command(*arguments).status == 130
    assert len(losses(kind, command.folder / "run")["student"]) == 3
    done = succeed(command(*arguments))
    assert "student  continuing after epoch 2 of 4" in done.out
    assert "teacher  found in" in done.out
    expected = truth(command.folder / "run")
    assert set(expected) == {"teacher", "baseline", "student"}
    assert losses(kind, command.folder / "run") == expected
    assert set(final_accuracies(kind, command.folder / "run")) == set(expected)


def final_accuracies(kind: str, folder: Path) -> dict[str, float]:
    """The test accuracy of every arm that has one in its own log."""
    if kind == "wandb":
        runs = {run.name.rpartition("-")[2]: wandb_summary(run)["summary"] for run in folder.glob("wandb/offline-*")}
    elif kind == "trackio":
        runs = {arm: rows[-1] for arm, (_, rows) in trackio_runs(folder).items()}
    else:
        read = {place.name: events(place) for place in folder.glob("tensorboard/*")}
        runs = {arm: {tag: one.Scalars(tag)[-1].value for tag in one.Tags()["scalars"]} for arm, one in read.items()}
    return {arm: logged[f"{arm}/test/accuracy"] for arm, logged in runs.items() if f"{arm}/test/accuracy" in logged}


def test_a_run_that_was_cut_off_before_its_final_metrics_is_not_finished(command, monkeypatch):
    arguments = (*SHORT, "trainer.max_epochs=1", "logger=wandb", "hydra.run.dir=run")
    with monkeypatch.context() as patch:
        patch.setattr(Tracking, "_log_result", Mock(side_effect=KeyboardInterrupt))
        assert command(*arguments).status == 130
    folder = command.folder / "run"
    assert not (folder / "wandb" / "complete").exists()
    succeed(command(*arguments))
    assert (folder / "wandb" / "complete").exists()
    assert losses("wandb", folder) == truth(folder)


def test_after_kill_9_wandb_has_every_point_once(tmp_path, command):
    arguments = ("trainer.max_epochs=30", "logger=wandb", "hydra.run.dir=outputs/digits_kd/run", "latency=false")
    assert cut_off(tmp_path, signal.SIGKILL, *arguments)[0] == -signal.SIGKILL
    marker = tmp_path / "outputs/digits_kd/run/wandb/complete"
    assert not marker.exists()
    done = succeed(command(*LONG, *arguments))
    assert "continuing after epoch" in done.out
    assert losses("wandb", marker.parents[1]) == truth(marker.parents[1])
    assert marker.exists()


def test_online_only_what_the_server_has_not_is_logged_again(tmp_path):
    logged = []
    run = SimpleNamespace(starting_step=38, log=lambda values, step, commit: logged.append((values, step, commit)))
    backend = Wandb(LoggerConfig(), tmp_path, "online")
    student = Run("student", "student", "name", "group", [], {}, {})
    backend.open["student"] = run
    backend.log(student, {"student/train/loss": 1.0, "epoch": 1}, 37)
    backend.log(student, {"student/val/accuracy": 0.5, "epoch": 2}, 56)
    backend.log(student, {"student/train/loss": 0.5, "epoch": 2}, 56)
    assert [(step, commit) for _, step, commit in logged] == [(56, False), (56, True)]
    assert logged[1][0]["trainer/global_step"] == 56


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_was_found_in_the_store_is_logged_with_its_curves(command, kind):
    succeed(command(*SHORT, "logger=csv", "hydra.run.dir=first"))
    done = succeed(command(*SHORT, f"logger={kind}", "hydra.run.dir=second"))
    assert "student  found in" in done.out
    assert losses(kind, command.folder / "second") == {"student": truth(command.folder / "second")["student"]}


def test_trackio_stays_on_this_machine_and_knows_all_arms(command, monkeypatch):
    def refuse(_socket, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "0" * 34)  # with a token trackio would ask for the user's name
    done = succeed(command(*SHORT, "logger=trackio", "hydra.run.dir=local"))
    folder = os.environ["TRACKIO_DIR"]
    assert f'trackio: trackio show --project "kd"  (files in {folder})' in done.out
    assert "* Trackio" not in done.out
    config, rows = trackio_runs(command.folder / "local")["student"]
    assert [config[name] for name in names.COLUMNS] == [4, 0.5, None, 0, "kd"]
    assert config["_Group"] == "digits_kd"
    result = json.loads((command.folder / "local/result.json").read_text())
    for name, value in names.summary(result).items():
        assert rows[-1][name] == pytest.approx(value), name


def test_tensorboard_has_the_settings_with_the_final_metrics(command):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    done = succeed(command(*SHORT, "logger=tensorboard", "hydra.run.dir=run", "method.alpha=0.9"))
    assert f"TensorBoard: tensorboard --logdir {command.folder / 'run'}" in done.out
    read = events(command.folder / "run/tensorboard/student")
    data = [m.plugin_data.content for tag, m in read.summary_metadata.items() if m.plugin_data.plugin_name == "hparams"]
    parsed = [HParamsPluginData.FromString(content) for content in data]
    settings = next(one for one in parsed if one.HasField("session_start_info")).session_start_info.hparams
    assert {name: settings[name].number_value for name in ("T", "alpha", "seed")} == {"T": 4, "alpha": 0.9, "seed": 0}
    assert settings["method"].string_value == "kd"
    shown = {info.name.tag for one in parsed if one.HasField("experiment") for info in one.experiment.metric_infos}
    assert {"student/test/accuracy", "student/test/points_over_baseline", "baseline/test/accuracy"} <= shown
    assert not any("class_accuracy" in name for name in shown)
    result = json.loads((command.folder / "run/result.json").read_text())
    for name, value in names.summary(result).items():
        assert read.Scalars(name)[-1].value == pytest.approx(value, rel=1e-5), name


def test_an_error_of_a_dashboard_stops_no_run(command):
    (command.folder / "run").mkdir()
    (command.folder / "run/tensorboard").write_text("in the way")
    done = succeed(command(*SHORT, "logger=tensorboard", "hydra.run.dir=run"))
    assert "logger=tensorboard: " in done.out
    assert "metrics.csv has everything" in done.out


def test_class_accuracies_leave_out_what_is_unknown():
    test = {"accuracy": 0.5, "per_class_accuracy": [0.5, None], "errors": 1, "confusion": [[1, 1], [0, 0]]}
    result = {"data": {"classes": ["a", "b"]}, "arms": {"student": {"test": test, "val": None}}}
    assert names.summary(result) == {
        "student/test/accuracy": 0.5,
        "student/test/errors": 1,
        "student/test/class_accuracy/a": 0.5,
    }


def test_without_a_key_there_is_a_hint_and_no_log(command):
    done = succeed(command("trainer.max_epochs=1", "data.train_limit=64", "latency=false"))
    assert sum("W&B" in line for line in done.out.splitlines()) == 1
    assert not list((command.folder / "outputs").rglob("wandb"))


def test_the_hint_reaches_the_user_whole(command, monkeypatch):
    monkeypatch.setattr(server, "mode", lambda _: ("off", "W&B: pip install [wandb]"))
    assert "pip install [wandb]" in command("trainer.max_epochs=1", "data.train_limit=64", "latency=false").out


def test_an_unreachable_server_is_found_within_seconds(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with socket.socket() as listener:  # bound but not listening: connections are refused
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        started = time.monotonic()
        mode, hint = server.mode(LoggerConfig(kind="wandb"))
    assert time.monotonic() - started < 2 * server.REACH_TIMEOUT_S
    assert mode == "offline"
    assert "127.0.0.1 cannot be reached" in hint


def test_the_mode_follows_from_key_server_and_wish(monkeypatch, tmp_path):
    monkeypatch.setattr(server, "reachable", lambda: True)
    assert server.mode(LoggerConfig(kind="auto"))[0] == "off"
    assert server.mode(LoggerConfig(kind="wandb"))[0] == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert server.mode(LoggerConfig(kind="auto"))[0] == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert server.mode(LoggerConfig(kind="auto"))[0] == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert server.mode(LoggerConfig(kind="wandb"))[0] == "off"


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    mode, hint = server.mode(LoggerConfig(kind="auto"))
    assert mode == "off"
    assert "pip install wandb" in hint


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_said_before_anything_trains(command, monkeypatch, kind):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *given: None if name == kind else find(name, *given))
    done = command(*SHORT, f"logger={kind}")
    assert done.status == 2
    assert f"pip install {kind}" in done.err
    assert "training" not in done.out


def test_trackio_is_refused_where_it_would_leave_the_machine(command, monkeypatch):
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")
    done = command(*SHORT, "logger=trackio")
    assert done.status == 2
    assert "TRACKIO_SPACE_ID=somebody/space" in done.err
    assert "training" not in done.out


def test_an_unknown_logger_is_answered_with_the_known_ones(command):
    done = command("logger.kind=mlflow")
    assert done.status == 2
    assert all(kind in done.err for kind in ("auto", "csv", *KINDS))
