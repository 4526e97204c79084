"""A run that starts from the weights of another run's student."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from kd import build, checkpoints, fork
from kd.errors import ConfigError
from kd.files import sha256
from kd.folder import config_hash
from kd.locks import owned
from kd.recipe import plan
from kd.schema import restored
from kd.store import Store
from kd.train import Trainings
from tests.commands import QUICK, Command, configured

SMALL = ("student.hidden=[16]", "teacher=random", "trainer.accelerator=cpu")
CNNS = ("model@student=resnet8", "model@teacher.model=resnet20", "teacher=random", "data.train_limit=40")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command(tmp_path, monkeypatch, capsys)


def cut(command, arm, *arguments, after=1):
    """Leave a run in the folder `run` whose training of an arm was cut off after so many epochs."""
    command.cut(arm, *QUICK, *SMALL, "hydra.run.dir=run", *arguments, after=after)


def starts(*overrides):
    """The weights that baseline and student (or its first stage) have before their first step, and the plan."""
    config = configured(*QUICK, *overrides)
    data = build.data(config)
    planned = plan(config, data)
    trainings = Trainings(data, Store("store"), Path(), config.trainer, Console(quiet=True), lambda *_: None)
    first = (planned.baseline, planned.student.initial or planned.student)
    return {recipe.label: trainings.module(recipe)[0].student.network.state_dict() for recipe in first}, planned


def is_same(one, other):
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


def test_student_and_baseline_start_from_a_finished_student(command):
    source = command.quick(*SMALL)
    trained = load_file(source / "student.safetensors")
    weights, planned = starts(*SMALL, f"fork={source}", "method.temperature=9")
    assert is_same(weights["student"], trained) and is_same(weights["baseline"], trained)
    assert planned.student.start.sha256 == sha256(source / "student.safetensors")
    assert planned.teacher.members[0].start is None
    done = command(*QUICK, *SMALL, f"fork={source}", "method.temperature=9", "seed=3")
    assert done.status == 0, done.err
    folder = command.folder / done.out.split("\n", 1)[0].split()[-1]
    assert folder != source
    assert f"student and baseline start from {source} (SHA-256 {planned.student.start.sha256[:16]}...)" in done.out
    result = json.loads((folder / "result.json").read_text())
    assert result["forked_from"] == {"folder": str(source), "sha256": planned.student.start.sha256}
    assert f"baseline and student start from {source}" in (folder / "report.html").read_text()
    assert json.loads((source / "result.json").read_text())["forked_from"] is None
    assert "start from" not in (source / "report.html").read_text()
    assert is_same(load_file(source / "student.safetensors"), trained)
    again = command(*QUICK, *SMALL, f"fork={source}", "method.temperature=9", "seed=3")
    assert "This run was finished before" in again.out


def test_fork_true_starts_a_run_beside_an_unfinished_one(command):
    cut(command, "student", "trainer.max_epochs=3", after=2)
    files = {path: path.read_bytes() for path in (command.folder / "run").rglob("*.*") if path.is_file()}
    change = (*QUICK, *SMALL, "hydra.run.dir=run", "optim=sgd")
    refused = command(*change)
    assert refused.status == 2
    assert "or add fork=true for a new run beside it" in refused.err
    done = command(*change, "fork=true")
    assert done.status == 0, done.err
    folder = command.folder / done.out.split("\n", 1)[0].split()[-1]
    assert folder.parent == command.folder and folder.name.startswith("run-fork-")
    [checkpoint] = (path for path in files if path.suffix == ".ckpt" and ".previous" not in path.name)
    started_from = json.loads((folder / "result.json").read_text())["forked_from"]
    assert started_from == {"folder": "run", "sha256": checkpoints.read_position(checkpoint).digest}
    for path, content in files.items():
        assert path.read_bytes() == content, path
    weights, _ = starts(*SMALL, "fork=run")
    state = checkpoints.CheckedIO().load_checkpoint(checkpoint)["state_dict"]
    for name, value in weights["student"].items():
        assert value.equal(state[f"student.network.{name}"])
    again = command(*change, "fork=true")
    assert "This run was finished before" in again.out


def test_a_fork_that_was_cut_off_continues(command, monkeypatch):
    source = command.quick(*SMALL).relative_to(command.folder)
    cut(command, "student", f"fork={source}", "seed=3")
    folder = command.folder / "run"
    done = command(*QUICK, *SMALL, "hydra.run.dir=run", f"fork={source}", "seed=3")
    assert done.status == 0, done.err
    assert "student  continuing after epoch 1 of 2" in done.out
    whole = command.quick(*SMALL, f"fork={source}", "seed=3", "store.root=other")
    assert is_same(load_file(whole / "student.safetensors"), load_file(folder / "student.safetensors"))


def test_the_newest_whole_checkpoint_is_taken(command):
    cut(command, "student", "trainer.max_epochs=3", after=2)
    [newest] = (command.folder / "run" / "checkpoints").glob("????????????????.ckpt")
    before = checkpoints.previous(newest)
    assert fork.find("run")["sha256"] == checkpoints.read_position(newest).digest
    newest.write_bytes(newest.read_bytes()[:-1])
    assert fork.find("run")["sha256"] == checkpoints.read_position(before).digest
    before.write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"nor a whole checkpoint .* \(damaged: .*{before.name}"):
        fork.find("run")
    assert newest.is_file() and before.is_file()


def test_what_cannot_be_started_from_is_refused_before_training(command):
    cut(command, "baseline")
    (command.folder / "empty").mkdir()
    source = command.quick(*SMALL)
    for arguments, said in (
        (("fork=nowhere",), "fork=nowhere: there is no such folder"),
        (("fork=empty",), "fork=empty: its student has no weights yet: there is no student.safetensors, nor"),
        (("fork=run",), "fork=run: its student has no weights yet"),
        (("fork=true",), "write fork=FOLDER"),
        ((f"fork={source}", "student.hidden=[17]"), "fc.weight has shape (10, 16), expected (10, 17)"),
        ((f"fork={source}", "student.hidden=[16,16]"), "holds another architecture than MLP: it lacks "),
        ((f"fork={{folder:{source},sha256:abc}}",), "no longer has the weights of SHA-256 abc"),
    ):
        done = command(*QUICK, *SMALL, *arguments)
        assert done.status == 2, (arguments, done.err)
        assert said in done.err, (arguments, done.err)
        assert "training" not in done.out
    assert "hydra.run.dir" in command(*QUICK, *SMALL, "-m", "fork=true", "seed=1,2").err


def test_a_run_that_is_at_work_is_not_started_from(command):
    cut(command, "student")
    with owned(command.folder / "run"), pytest.raises(ConfigError, match="still at work"):
        fork.find("run")
    assert fork.find("run")


def test_the_start_decides_folder_and_keys_and_its_place_does_not(command):
    source = command.quick(*SMALL)
    shutil.copytree(source, "copy")
    plain, forked, copied = (configured(*QUICK, *SMALL, *more) for more in ((), (f"fork={source}",), ("fork=copy",)))
    assert config_hash(forked) == config_hash(copied) != config_hash(plain)
    assert config_hash(restored(asdict(forked))) == config_hash(forked)
    _, here = starts(*SMALL, f"fork={source}")
    _, there = starts(*SMALL, "fork=copy")
    _, none = starts(*SMALL)
    assert here.student.key == there.student.key != none.student.key
    assert here.baseline.key == there.baseline.key != none.baseline.key
    assert [member.key for member in here.teacher.members] == [member.key for member in none.teacher.members]


def test_a_first_stage_starts_from_the_weights(command):
    source = command.quick(*CNNS, "trainer.max_epochs=1", "method=hard")
    weights, planned = starts(*CNNS, f"fork={source}", "method=fitnets")
    assert is_same(weights["student-initial"], load_file(source / "student.safetensors"))
    assert planned.student.start is None and planned.baseline.start is not None


def test_a_method_that_replaces_the_network_is_refused(command):
    source = command.quick(*CNNS, "trainer.max_epochs=1", "method=hard")
    done = command(*QUICK, *CNNS, "method=simkd", f"fork={source}")
    assert done.status == 2
    assert "cannot start from the student's weights" in done.err


def test_more_epochs_name_what_trains_anew(command):
    cut(command, "student")
    done = command(*QUICK, *SMALL, "hydra.run.dir=run", "trainer.max_epochs=3")
    assert done.status == 0, done.err
    assert "trainer.max_epochs 2 -> 3: training baseline, student from the start" in done.out


def test_the_saved_configuration_of_a_fork_is_the_same_run(command):
    source = command.quick(*SMALL)
    folder = command.quick(*SMALL, f"fork={source}", "seed=3")
    done = command("--config-dir", str(folder), "--config-name", "config")
    assert done.status == 0, done.err
    assert "This run was finished before" in done.out
