"""Mistakes that only data, files or networks can show: a message and a status, before any training."""

import json
import os
import pickle
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file

from kd.nets.mlp import MLP
from tests.commands import QUICK, Command

CHECKPOINT = ("teacher=checkpoint", "model@teacher.model=mlp_16")


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Run a command that must fail before any training, and return its message."""
    command = Command(tmp_path, monkeypatch, capsys)
    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("training started"))

    def run(status: int, *arguments: str) -> str:
        done = command(*QUICK, *arguments)
        assert done.status == status, done.err + done.out
        assert done.err.startswith("Error: ")
        assert "Traceback" not in done.err
        return done.err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+data.batchsize=3"], ["`data.batchsize`", "Did you mean 'batch_size'"]),
        (["+student.hiden=[3]"], ["`student.hiden`", "hidden"]),
        (["+optim.optimizer.learning_rate=3"], ["learning_rate", "lr"]),
        (["method.terms.kd._target_=kd.losses.kd.Nothing"], ["kd.losses.kd.Nothing"]),
        (["+method.terms.kd.tempreture=3"], ["tempreture", "temperature"]),
        (["method=hard", "method.temperature=4"], ["'hard'", "method.temperature"]),
        (["method=mixed_target", "method.beta=0.5"], ["mixed_target", "method.beta"]),
        (["data.omit=[12]"], ["12", "0 to 9"]),
        (["data.omit=[0,1,2,3,4,5,6,7,8,9]"], ["no class"]),
        (["data.train_limit=5000"], ["data.train_limit", "1200", "5000"]),
        (["data.val=1400"], ["data.val", "1400"]),
        (["data.augment=rotate"], ["'rotate'", "crop_flip"]),
        (["model@student=vgg13_bn_cifar"], ["student", "8"]),
        (["model@teacher.model=resnet34"], ["3 channels"]),
        (["method=kd", "teacher=none"], ["teacher=none"]),
        (["method=hint", "method.terms.hint.student=layer9"], ["'layer9'", "student", "hidden"]),
        (["method=attention"], ["attention", "feature maps"]),
        (["method=rkd", "teacher=ensemble"], ["ensemble", "layers"]),
        (["method=rkd", "teacher=virtual"], ["logits", "teacher=trained"]),
        (["method=kd", "+method.terms.kd.schedule.start=3"], ["method.terms.kd.schedule.start", "start_epoch"]),
        (["method=fitnets", "method.initial.epochs=0"], ["method.initial.epochs", "0"]),
        (["optim.optimizer.lr=-1"], ["optim.optimizer", "-1"]),
        (["optim/schedule=cosine", "optim.schedule.warmup_epochs=2"], ["warmup_epochs", "2"]),
        (
            ["optim.optimizer._target_=torch.optim.LBFGS", "~optim.optimizer.weight_decay", "~optim.optimizer.fused"],
            ["LBFGS", "several times in a step", "optim=adamw"],
        ),
        (["trainer.accelerator=tpu"], ["trainer.accelerator=tpu"]),
        (["teacher.correct_probability=0.05", "teacher=virtual"], ["0.05"]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) and "=" in value[0] else "",
)
def test_a_configuration_that_cannot_work(refuse, arguments, words):
    message = refuse(2, *arguments)
    assert all(word in message for word in words), message


def test_missing_data_without_a_network(refuse, tmp_path, monkeypatch):
    import torchvision

    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    message = refuse(3, "data=mnist", f"data.root={tmp_path}/nowhere")
    assert "Name or service not known" in message
    assert str(tmp_path / "nowhere" / "MNIST" / "raw" / "train-images-idx3-ubyte") in message
    assert "KD_DATA_DIR" in message


def test_a_damaged_dataset_file(refuse, tmp_path, real_data):
    shutil.copytree(real_data / "MNIST", tmp_path / "MNIST", copy_function=os.symlink)
    labels = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = bytearray(labels.read_bytes())
    content[100] ^= 1
    labels.unlink()
    labels.write_bytes(content)
    message = refuse(3, "data=mnist", f"data.root={tmp_path}", "data.train_limit=null")
    assert "t10k-labels-idx1-ubyte is damaged" in message
    assert "27ae3e4e09519cfbb04c329615203637" in message


def network(**options) -> MLP:
    return MLP(hidden=[16], num_classes=10, image_shape=(1, 8, 8), **options)


def described(folder: Path, **changes) -> Path:
    """A teacher's file as this project writes it, with some of its description changed."""
    path = folder / "teacher.safetensors"
    about = {"class_names": [str(digit) for digit in range(10)], "mean": None, "std": None, **changes}
    save_file(network().state_dict(), path, metadata={name: json.dumps(value) for name, value in about.items()})
    return path


def test_a_teacher_file_that_is_not_there(refuse):
    assert "no such file" in refuse(4, *CHECKPOINT, "teacher.path=nowhere.safetensors")


def test_a_teacher_file_that_is_cut_off(refuse, tmp_path):
    path = described(tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    assert "damaged" in refuse(4, *CHECKPOINT, f"teacher.path={path}")


def test_a_teacher_file_for_another_architecture(refuse, tmp_path):
    message = refuse(4, "teacher=checkpoint", "model@teacher.model=mlp_400", f"teacher.path={described(tmp_path)}")
    assert "another architecture" in message
    assert "hidden.1" in message


def test_a_teacher_file_for_another_number_of_classes(refuse, tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_file(MLP(hidden=[16], num_classes=7, image_shape=(1, 8, 8)).state_dict(), path)
    message = refuse(4, *CHECKPOINT, f"teacher.path={path}")
    assert "(7,)" in message
    assert "(10,)" in message
    assert "number of classes" in message


def test_a_teacher_file_for_another_class_order(refuse, tmp_path):
    path = described(tmp_path, class_names=[str(digit) for digit in reversed(range(10))])
    assert "classes (in this order)" in refuse(4, *CHECKPOINT, f"teacher.path={path}")


def test_a_teacher_file_for_another_normalisation(refuse, tmp_path):
    assert "normalisation mean" in refuse(4, *CHECKPOINT, f"teacher.path={described(tmp_path, mean=[0.9])}")


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_teacher_file_that_would_execute_code(refuse, tmp_path):
    with (tmp_path / "evil.pt").open("wb") as file:
        pickle.dump({"state_dict": Evil()}, file, protocol=2)
    torch.save({"state_dict": network().state_dict(), "extra": Evil()}, tmp_path / "evil_zip.pt")
    for name in ("evil.pt", "evil_zip.pt"):
        assert "could execute code" in refuse(4, *CHECKPOINT, f"teacher.path={name}")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("setting", ["hydra.run.dir", "store.root"])
def test_a_folder_that_cannot_be_written(refuse, tmp_path, setting):
    (tmp_path / "file").write_text("in the way")
    message = refuse(2 if setting == "hydra.run.dir" else 4, f"{setting}=file/folder")
    assert "file" in message
    assert "Choose another" in message


def test_a_damaged_store_entry(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    folder = command.quick()
    key = json.loads((folder / "result.json").read_text())["arms"]["teacher"]["store_key"]
    weights = tmp_path / "outputs" / "store" / key / "weights.safetensors"
    state = {name: value + 1 for name, value in load_file(weights).items()}
    save_file(state, weights)
    done = command(*QUICK, "seed=1")
    assert done.status == 4
    assert "damaged" in done.err
    assert key in done.err
