"""`kd.distill`: plain Python, any networks, any DataLoader."""

import copy
import re
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kd import distill, method_config
from kd.errors import ConfigError, NumericError

DOCS = Path(__file__).parents[1] / "docs" / "python.md"
ROLES = {"embedding": "flatten", "stages": ["stage1.1", "stage2.1"], "preactivations": ["stage1.0", "stage2.0"]}
ROLES |= {"classifier": "fc"}
METHODS = sorted(path.stem for path in Path(__file__).parents[1].glob("conf/method/*.yaml"))


class Small(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, image):
        return self.fc(self.stage2(self.stage1(image)).mean((2, 3)).flatten(1))


class Parametric(nn.Module):
    """Has a parameter of its own, and nothing that would reset it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 10))

    def forward(self, image):
        return image.flatten(1) @ self.weight


def loaders(*, index=True):
    digits = load_digits()
    image = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    parts = (image, torch.tensor(digits.target), torch.arange(len(image)))[: 3 if index else 2]

    def loader(rows, shuffle=False):
        return DataLoader(TensorDataset(*(part[rows] for part in parts)), batch_size=48, shuffle=shuffle)

    return loader(slice(0, 192), True), loader(slice(192, 288)), loader(slice(288, 384))


def blocks():
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.S)


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one, other):
    return all(one[name].equal(other[name]) for name in one)


def test_the_documented_example_runs(capsys):
    names = {}
    exec(blocks()[1], names)
    printed = capsys.readouterr().out
    accuracies = [float(value) for value in re.findall(r"accuracy ([\d.]+)%", printed)]
    assert len(accuracies) == 3
    assert min(accuracies) > 80
    assert names["taught"].metrics["test"]["accuracy"] > 0.95
    exec(blocks()[2], names)
    assert names["result"].metrics["test"]["accuracy"] > 0.8
    exec(blocks()[3], names)
    combined = distill(names["student"], names["teacher"], names["train"], method=names["method"], epochs=1,
                       student_layers={"embedding": "2"}, teacher_layers={"embedding": "2"})  # fmt: skip
    assert set(combined.history[0]) >= {"train/ce", "train/kd", "train/rkd"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_foreign_student(method):
    train, val, test = loaders()
    torch.manual_seed(0)
    student, teacher = Small(4), Small(8)
    before, start = state(teacher), state(student)
    result = distill(student, teacher, train, method=method, epochs=2, val=val, test=test,
                     student_layers=ROLES, teacher_layers=ROLES)  # fmt: skip
    assert same(before, state(teacher)), "the teacher was changed"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert teacher.training
    assert same(start, state(student)) == (method == "simkd")
    assert len([epoch for epoch in result.history if epoch["stage"] == "main"]) == 2
    assert result.metrics["val"]["epoch"] in (1, 2)
    assert result.metrics["test"]["n"] == 96
    assert (result.student is student) == (method != "simkd")
    assert list(result.delivered) == (["peer"] if method == "mutual" else [])
    assert not result.student.training


def test_the_same_arguments_give_the_same_student():
    runs = []
    for _ in range(2):
        train, val, test = loaders()
        torch.manual_seed(0)
        student, teacher = Small(4), Small(8)
        runs.append(distill(student, teacher, train, epochs=2, val=val, test=test))
    assert same(state(runs[0].student), state(runs[1].student))
    assert runs[0].metrics == runs[1].metrics
    assert runs[0].history == runs[1].history


def test_the_selected_epoch_is_returned():
    train, val, test = loaders()
    torch.manual_seed(0)
    result = distill(Small(4), Small(8), train, method="hard", epochs=5, val=val, test=test)
    accuracy = [epoch["val/accuracy"] for epoch in result.history]
    assert result.metrics["val"]["accuracy"] == max(accuracy)
    with torch.no_grad():
        correct = torch.cat([result.student(image).argmax(1) == target for image, target, _ in val])
    assert correct.float().mean().item() == pytest.approx(max(accuracy))


def test_the_history_has_both_stages():
    train, val, _ = loaders()
    result = distill(Small(4), Small(8), train, method="fitnets", epochs=9, val=val,
                     student_layers=ROLES, teacher_layers=ROLES)  # fmt: skip
    assert [(one["stage"], one["epoch"]) for one in result.history][:3] == [("initial", 1), ("initial", 2), ("main", 1)]
    assert len(result.history) == 11
    assert "val/accuracy" not in result.history[0]


@pytest.mark.parametrize("teacher", [None, "frozen"])
def test_a_peer_is_untrained_at_first_and_trains(teacher):
    train, _, _ = loaders()
    torch.manual_seed(0)
    student = Small(4)
    frozen = Small(8).eval().requires_grad_(False)
    start = state(student if teacher is None else frozen)
    result = distill(student, None if teacher is None else frozen, train, method="mutual", epochs=2)
    peer = result.delivered["peer"]
    assert not any(state(peer)[name].equal(value) for name, value in start.items())
    if teacher is None:
        assert not same(state(peer), state(student))
    assert result.history[1]["train/mutual"] < result.history[0]["train/mutual"]


def test_simkd_leaves_the_passed_student_as_it_is():
    train, _, _ = loaders()
    student = Small(4)
    before = state(student)
    distill(student, Small(8), train, method="simkd", epochs=1, student_layers=ROLES, teacher_layers=ROLES)
    assert same(before, state(student))


def test_layers_that_are_frozen_stay_so():
    train, _, _ = loaders()
    student = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    student[1].eval()
    before = student[1].running_mean.clone()
    distill(student, None, train, method="hard", epochs=1)
    assert student[1].running_mean.equal(before)


def test_inputs_need_not_be_images():
    images, labels = torch.randn(64, 20), torch.randint(0, 3, (64,))
    rows = DataLoader(TensorDataset(images, labels), batch_size=16)
    assert distill(nn.Linear(20, 3), nn.Linear(20, 3), rows, epochs=1).history[0]["train/loss"] > 0


def test_a_student_is_left_as_it_was_laid_out_when_a_training_fails():
    train = DataLoader(TensorDataset(torch.full((8, 1, 8, 8), torch.inf), torch.zeros(8, dtype=torch.int64)), 4)
    student = Small(4)
    with pytest.raises(NumericError):
        distill(student, Small(4), train, epochs=1)
    assert all(parameter.is_contiguous() for parameter in student.parameters())


def test_losses_fall():
    train, _, _ = loaders()
    torch.manual_seed(0)
    history = distill(Small(8), copy.deepcopy(Small(8)), train, epochs=6, temperature=2.0).history
    assert history[-1]["train/loss"] < history[0]["train/loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "kdd"}, "Did you mean 'kd'"),
        ({"epochs": 0}, "epochs"),
        ({"temperature": 0}, "temperature"),
        ({"method": "hard", "temperature": 2.0}, "method.temperature"),
        ({"precision": "int8"}, "int8"),
        (
            {"method": "rkd", "student_layers": {"embedding": "flattn"}, "teacher_layers": ROLES},
            "Did you mean 'flatten'",
        ),
        ({"method": "rkd"}, "embedding"),
        ({"teacher": None}, "`teacher` is None"),
        ({"teacher": nn.Sequential(nn.Flatten(), nn.Linear(64, 7))}, r"\(48, 7\)"),
        ({"student": nn.Conv2d(1, 4, 3)}, "logits"),
        ({"train": []}, "at least one batch"),
        ({"train": [torch.zeros(2, 1, 8, 8)]}, "image, target"),
        ({"train": [(torch.zeros(2, 1, 8, 8), [0, 1])]}, "list"),
        ({"method": method_config("kd") | {"temprature": 9.0}}, "Did you mean 'temperature'"),
        ({"method": method_config("fitnets") | {"initial": {"epochs": 2}}}, "method.initial.terms"),
        ({"seed": "a"}, "seed"),
        ({"optimizer": torch.optim.LBFGS}, "several times in a step"),
        ({"student": Small(4).requires_grad_(False)}, "nothing would be trained"),
        ({"method": "rkd", "student_layers": {"embedding": 3}, "teacher_layers": ROLES}, "embedding"),
        ({"method": "mutual", "teacher": Parametric()}, "reset_parameters"),
        (
            {"method": "crd", "train": DataLoader(loaders()[0].dataset, 50, drop_last=True)}
            | {"student_layers": ROLES, "teacher_layers": ROLES},
            "drop_last",
        ),
        (
            {"method": "crd", "train": loaders(index=False)[0], "student_layers": ROLES, "teacher_layers": ROLES},
            "index",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_named_before_training(arguments, message):
    train, _, _ = loaders()
    given = {"student": Small(4), "teacher": Small(8), "train": train} | arguments
    with pytest.raises(ConfigError, match=message):
        distill(given.pop("student"), given.pop("teacher"), given.pop("train"), **given)


def test_a_method_is_a_dict_of_its_own():
    one = method_config("kd")
    one["terms"]["kd"]["weight"] = 0.0
    assert method_config("kd")["terms"]["kd"]["weight"] == "alpha"
