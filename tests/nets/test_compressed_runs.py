"""Quantised and pruned students from one command: trained, stored, evaluated as they would be deployed."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kd import build
from kd.nets.pruned import Pruned
from kd.result import model_name
from tests.commands import QUICK, Command, configured

SMALL = ("student.network.width=[4,8,8]", "student.network.hidden=16", "model@teacher.model=resnet8")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command(tmp_path, monkeypatch, capsys)


def delivered(folder, *arguments):
    """The student of a run, built from its configuration and filled from its file."""
    config = configured(*arguments)
    model = {name: value for name, value in config.student.items() if name != "taps"}
    network = build.network(model, build.data(config))
    network.load_state_dict(load_file(folder / "student.safetensors"))
    return network.eval()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["int8", "pruned"])
def test_a_run_with_a_compressed_student(command, kind, precision):
    chosen = (f"model@student=cnn3_{kind}", *SMALL)
    folder = command.quick(*chosen, f"trainer.precision={precision}", "method=hint")
    arms = json.loads((folder / "result.json").read_text())["arms"]
    assert arms["student"]["params"] == arms["baseline"]["params"] == 40 + 296 + 584 + (8 + 1) * 16 + 17 * 10
    assert arms["student"]["model"] == arms["baseline"]["model"]
    assert "CNN3" in arms["student"]["model"]
    assert "finished before" in command(*chosen, f"trainer.precision={precision}", "method=hint", *QUICK).out
    network = delivered(folder, *chosen)
    image = torch.randn(2, 1, 8, 8)
    assert torch.equal(network(image), network(image))
    if isinstance(network, Pruned):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                assert (layer.weight == 0).sum() == round(0.8 * layer.weight.numel())
    else:
        assert all(value > 0 for name, value in network.state_dict().items() if name.endswith("input.high"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("+student.network.hiden=3", "hiden"),
        ("student.network._target_=kd.nets.cnn3.CNN4", "CNN4"),
        ("student.bits=20", "`bits`"),
        ("student.network.hidden=0", "`hidden`"),
    ],
)
def test_a_mistake_in_the_network_inside_is_told(command, argument, message):
    done = command("model@student=cnn3_int8", argument, "logger=csv")
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("wrapped", "name"),
    [
        (
            {"_target_": "kd.nets.pruned.Pruned", "sparsity": 0.95, "ramp": 2000},
            "Pruned(MLP(hidden=[4]), sparsity=0.95)",
        ),
        ({"_target_": "kd.nets.quantized.Quantized", "bits": 4}, "Quantized(MLP(hidden=[4]), bits=4)"),
        ({"_target_": "kd.nets.quantized.Quantized", "bits": 8}, "Quantized(MLP(hidden=[4]))"),
        ({"_target_": "kd.losses.simkd.ReusedClassifier", "layer": "fc"}, "ReusedClassifier(MLP(hidden=[4]))"),
    ],
)
def test_a_name_says_how_a_network_is_compressed(wrapped, name):
    inside = {"_target_": "kd.nets.mlp.MLP", "hidden": [4], "num_classes": 10, "image_shape": [1, 8, 8]}
    assert model_name({**wrapped, "network": inside}) == name
