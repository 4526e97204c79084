"""Networks by the name that torchvision and timm know them by."""

import sys

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from kd.errors import ConfigError
from kd.nets.by_name import timm_model, torchvision_model

CIFAR = (3, 32, 32)


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("tried to download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5"])
@pytest.mark.usefixtures("no_download")
def test_torchvision_classifiers(name):
    with torch.device("meta"):
        model = torchvision_model(name, 10, image_shape=CIFAR)
    assert model(torch.empty(2, *CIFAR, device="meta")).shape == (2, 10)


def test_torchvision_options_reach_the_network():
    with torch.device("meta"):
        model = torchvision_model("mobilenet_v3_small", 10, dropout=0.7)
    assert 0.7 in [module.p for module in model.modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_off(name):
    with torch.device("meta"):
        model = torchvision_model(name, 10)
    assert isinstance(model.train()(torch.empty(2, 3, 96, 96, device="meta")), torch.Tensor)


def test_vit_takes_the_datasets_size():
    with torch.device("meta"):
        model = torchvision_model("vit_b_16", 10, image_shape=CIFAR)
    assert model(torch.empty(1, *CIFAR, device="meta")).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnt34", {}, "Unknown torchvision model 'resnt34'. Nearest: .*resnet34"),
        ("fasterrcnn_resnet50_fpn", {}, "Unknown torchvision model"),
        ("zzz", {}, r"Unknown torchvision model 'zzz'. Known: the \d+"),
        ("resnet18", {"image_shape": (1, 28, 28)}, "3 channels, but the dataset's have 1"),
        ("resnet18", {"dropuot": 0.1}, "resnet18 cannot be built as configured: .*dropuot"),
        ("resnet18", {"num_classes": 0}, "`num_classes`"),
    ],
)
def test_torchvision_refuses(name, options, message):
    with pytest.raises(ConfigError, match=message):
        torchvision_model(name, **{"num_classes": 10, **options})


def test_timm_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install timm"):
        timm_model("resnet18", 10, CIFAR)


class TestTimm:
    @pytest.fixture(autouse=True)
    def timm(self):
        return pytest.importorskip("timm")

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("resnet18", (1, 28, 28)),
            ("resnet18.a1_in1k", CIFAR),
            ("mobilenetv3_small_050", (5, 32, 32)),
            ("vit_tiny_patch16_224", (1, 32, 48)),
        ],
    )
    @pytest.mark.usefixtures("no_download")
    def test_any_channels_and_size(self, name, shape):
        with torch.device("meta"):
            model = timm_model(name, 10, shape)
        assert model(torch.empty(2, *shape, device="meta")).shape == (2, 10)
        assert not [path for path, module in model.named_modules() if getattr(module, "inplace", False)]

    def test_a_tap_before_a_relu_keeps_its_negative_values(self):
        model = timm_model("resnet18", 10, CIFAR).eval()
        taps = create_feature_extractor(model, return_nodes=["layer1.0.bn1", "fc"])
        assert (taps(torch.randn(2, *CIFAR))["layer1.0.bn1"] < 0).any()

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("resnt18", {}, "Unknown timm model 'resnt18'. Nearest: resnet18"),
            ("hf_hub:someone/something", {}, "Unknown timm model"),
            ("resnet18", {"img_size": 32}, "resnet18 cannot be built as configured: .*img_size"),
        ],
    )
    def test_refuses(self, name, options, message):
        with pytest.raises(ConfigError, match=message):
            timm_model(name, 10, CIFAR, **options)
