"""The layers that conf/model/*.yaml name by role: that they exist, and are what the role promises."""

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from kd.taps import Tapped

CONF = Path(__file__).parents[2] / "conf" / "model"
ROLES = {path.stem: OmegaConf.to_container(OmegaConf.load(path))["taps"] for path in sorted(CONF.glob("*.yaml"))}
ANY_NAME = ["timm", "torchvision"]  # their layers are as many as their networks
NAMES = [name for name in ROLES if name not in ANY_NAME]
ACTIVATED = [name for name in NAMES if not name.startswith(("wrn", "mobilenet"))]  # their stages end in a ReLU
NO_STEM = [name for name in NAMES if name.startswith(("mlp", "cnn3", "vgg"))]  # their first layers are a stage
LATER_FINAL = [name for name in NAMES if name.startswith(("wrn", "mobilenet", "shufflenetv2", "vgg13_bn_cifar"))]
HIDDEN_CLASSIFIER = [name for name in NAMES if name.startswith(("cnn3", "vgg13_bn_wide"))]
STAGES = ("layer", "block", "hidden.", "network.layer")  # how the modules of the stages are named
INSIDE = {"mlp": "hidden.", ".*_(int8|pruned)$": "network."}  # where they lie


def layers(name):
    return [
        layer
        for role, named in ROLES[name].items()
        if role != "classifier"
        for layer in ([named] if isinstance(named, str) else named)
    ]


def build(name, device):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    config.pop("taps")
    given = {"num_classes": 10, "image_shape": (1, 28, 28) if name.startswith("mlp") else (3, 32, 32)}
    torch.manual_seed(0)
    config.get("network", config).update(given)
    with torch.device(device):
        network = instantiate(config)
        return Tapped(network, layers(name)), torch.randn(2, *given["image_shape"])


def test_every_network_names_its_layers_last():
    for name in ROLES:
        assert list(OmegaConf.load(CONF / f"{name}.yaml"))[-1] == "taps"
    for name in ANY_NAME:
        assert ROLES[name] == dict.fromkeys(["stem", "stages", "preactivations", "embedding", "classifier"])
    for name in NAMES:
        stem = [] if name in NO_STEM else ["stem"]
        final = ["final"] if name in LATER_FINAL else []
        assert list(ROLES[name]) == [*stem, "stages", "preactivations", *final, "embedding", "classifier"], name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_roles_have_the_shapes_that_they_promise(name, training):
    tapped, image = build(name, "meta")
    taps = tapped.train(training)(image).taps
    roles, classifier = ROLES[name], tapped.network.get_submodule(ROLES[name]["classifier"])
    assert isinstance(classifier, nn.Linear)
    assert classifier is [module for module in tapped.network.modules() if isinstance(module, nn.Linear)][-1]
    assert taps[roles["embedding"]].shape == (2, classifier.in_features)

    dimensions = 2 if name.startswith("mlp") else 4
    stages = [taps[layer] for layer in roles["stages"]]
    assert len(set(roles["stages"])) == len(stages) == len(roles["preactivations"])
    assert all(stage.ndim == dimensions for stage in stages)
    assert [taps[layer].shape for layer in roles["preactivations"]] == [stage.shape for stage in stages]
    if name not in NO_STEM:
        assert taps[roles["stem"]].ndim == 4
    sizes = [stage.shape[-1] for stage in stages]
    if dimensions == 4:
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_all_of_the_networks_in_order(name):
    network = build(name, "meta")[0].network
    prefix = next((path for start, path in INSIDE.items() if re.match(start, name)), "")
    parts = network.get_submodule(prefix.rstrip("."))
    blocks = [prefix + child for child, _ in parts.named_children() if (prefix + child).startswith(STAGES)]
    assert [layer.removesuffix(".relu") for layer in ROLES[name]["stages"]] == blocks


@pytest.mark.parametrize("name", NAMES)
def test_roles_hold_the_values_that_they_promise(name):
    tapped, image = build(name, "cpu")
    with torch.no_grad():
        logits, taps = tapped.eval()(image)
    roles = ROLES[name]
    classifier = tapped.network.get_submodule(roles["classifier"])
    assert torch.equal(logits, classifier(taps[roles["embedding"]]))
    if name not in HIDDEN_CLASSIFIER:  # what SimKD and SRRL rely on
        final = taps[roles.get("final", roles["stages"][-1])]
        torch.testing.assert_close(final.mean((2, 3)) if final.ndim == 4 else final, taps[roles["embedding"]])
    assert name not in ACTIVATED or roles["stages"] != roles["preactivations"]
    for stage, before in zip(roles["stages"], roles["preactivations"], strict=True):
        expected = F.relu(taps[before]) if name in ACTIVATED else taps[before]
        assert torch.equal(taps[stage], expected)
        assert (taps[before] < 0).any()
