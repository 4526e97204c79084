"""What makes a comparison fair: equal starts, keys that cover everything, a teacher that does not change."""

import dataclasses
import hashlib
import json

import pytest
import torch
import yaml

from kd import build, cli, recipe
from kd.teachers import NoTeacher
from tests.commands import Command, configured


def planned(*overrides: str) -> recipe.Plan:
    config = configured(*overrides)
    return recipe.plan(config, build.data(config))


def test_baseline_and_student_start_from_the_same_weights():
    config = configured()
    data = build.data(config)
    plan = recipe.plan(config, data)
    baseline, student = (build.student(arm, data, NoTeacher())[0].state_dict() for arm in (plan.baseline, plan.student))
    assert all(baseline[name].equal(student[name]) for name in baseline)
    teacher = build.student(plan.teacher.members[0], data, NoTeacher())[0].state_dict()
    assert not any(name in teacher and teacher[name].equal(value) for name, value in student.items())


def test_a_self_teacher_does_not_start_where_its_student_starts():
    config = configured("teacher=self")
    data = build.data(config)
    plan = recipe.plan(config, data)
    arms = (plan.teacher.members[0], plan.student)
    teacher, student = (build.student(arm, data, NoTeacher())[0].state_dict() for arm in arms)
    assert all(teacher[name].shape == value.shape for name, value in student.items())
    assert not any(teacher[name].equal(value) for name, value in student.items() if value.any())


def test_a_teacher_that_needs_networks_cannot_be_built_without():
    for kind in ("self", "trained", "checkpoint", "ensemble"):
        with pytest.raises(AssertionError, match="needs trained networks"):
            build.teacher(recipe.TeacherPlan(kind), [], [], 10)
    assert isinstance(build.teacher(recipe.TeacherPlan("none"), [], [], 10), NoTeacher)


def test_the_built_in_hard_targets_are_those_of_the_config_folder():
    written = yaml.safe_load((cli.conf_dir() / "method" / "hard.yaml").read_text())
    built = recipe.hard_targets(0.0)
    assert {name: value for name, value in written.items() if value is not None} == built


@pytest.mark.parametrize(
    "change",
    [
        ["seed=1"],
        ["method.temperature=2"],
        ["method.alpha=0.3"],
        ["method.terms.ce.label_smoothing=0.1"],
        ["student.hidden=[17]"],
        ["data.batch_size=32"],
        ["data.augment=shift"],
        ["data.train_limit=1000"],
        ["data.val=100"],
        ["data.omit=[3]"],
        ["optim.optimizer.lr=0.1"],
        ["optim/schedule=cosine"],
        ["trainer.max_epochs=3"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.gradient_clip_val=1.0"],
        ["teacher.seed=7"],
        ["teacher.label_smoothing=0.1"],
        ["model@teacher.model=mlp"],
        ["teacher=ema"],
        ["teacher=virtual"],
    ],
    ids=lambda change: change[0],
)
def test_whatever_determines_the_student_is_in_its_key(change):
    assert planned(*change).student.key != planned().student.key


@pytest.mark.parametrize(
    "change", ["logger=csv", "store.root=elsewhere", "data.test_limit=10", "trainer.accelerator=cpu"]
)
def test_what_does_not_is_not(change):
    assert planned(change).student.key == planned().student.key


def test_omission_is_in_the_keys_of_those_who_miss_the_class():
    whole, without = planned(), planned("data.omit=[3]")
    assert whole.teacher.members[0].key == without.teacher.members[0].key
    assert whole.baseline.key != without.baseline.key
    hidden = planned("data.omit=[3]", "data.omit_from=[teacher]")
    assert hidden.baseline.key == whole.baseline.key
    assert hidden.teacher.members[0].key != whole.teacher.members[0].key
    assert hidden.student.key != whole.student.key  # it learns from another teacher


def test_generations_are_chained():
    plan = planned("teacher=self", "teacher.generations=3")
    third = plan.teacher.members[0]
    second = third.teacher.members[0]
    first = second.teacher.members[0]
    assert first.teacher.kind == "none"
    assert [arm.label for arm in plan.recipes()] == ["teacher", "teacher-2", "teacher-3", "baseline", "student"]
    assert len({arm.key for arm in plan.recipes()}) == 5


def digest(module: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


def test_training_a_student_leaves_the_teacher_as_it_was(tmp_path, monkeypatch, capsys):
    """A network with batch norm teaches: its weights and running statistics are bit-equal afterwards."""
    command = Command(tmp_path, monkeypatch, capsys)
    seen = []
    original = build.teacher

    def watched(*arguments, **options):
        teacher = original(*arguments, **options)
        seen.extend((network, digest(network)) for network in teacher.networks)
        return teacher

    monkeypatch.setattr(build, "teacher", watched)
    folder = command.quick("model@teacher.model=resnet20", "trainer.max_epochs=1", "data.train_limit=64")
    assert len(seen) >= 3  # dry run, training, evaluation
    for network, before in seen:
        assert digest(network) == before
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    checkpoint = torch.load(folder / "checkpoints" / "student.ckpt", weights_only=True)
    assert all(name.startswith(("student.", "objective.")) for name in checkpoint["state_dict"])
    sizes = [state["exp_avg"].numel() for state in checkpoint["optimizer_states"][0]["state"].values()]
    assert sum(sizes) == 1210  # the student's parameters alone are optimised


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    done = command("trainer.max_epochs=3", "data.train_limit=192", "logger=csv", "optim.optimizer.lr=1e30")
    assert done.status == 5
    assert "teacher: " in done.err
    assert "NaN or infinite in epoch" in done.err
    assert "optim.optimizer.lr" in done.err
    assert not list((tmp_path / "outputs").rglob("result.json"))


def test_recipes_compare_by_what_they_hold():
    one, other = planned(), planned()
    assert dataclasses.asdict(one.student) == dataclasses.asdict(other.student)


def test_an_untrained_teacher_is_a_control_and_trains_nothing(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    done = command("teacher=random", "trainer.max_epochs=1", "data.train_limit=192", "logger=csv")
    assert done.status == 0, done.err
    assert "teacher  untrained" in done.out
    teacher = json.loads(next(command.folder.glob("outputs/*/*/result.json")).read_text())["arms"]["teacher"]
    assert teacher["epochs"] == 0
    assert teacher["test"]["accuracy"] < 0.5
    assert teacher["train_s"] == 0


def test_a_teacher_may_be_trained_for_longer_than_its_students():
    plan = planned("trainer.max_epochs=3", "teacher.max_epochs=7")
    assert [member.epochs for member in plan.recipes()] == [7, 3, 3]
    untrained = planned("trainer.max_epochs=3", "teacher.max_epochs=7", "teacher=random")
    assert [member.epochs for member in untrained.recipes()] == [0, 3, 3]
