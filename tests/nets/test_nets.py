"""Every network of conf/model: its published cost, its shapes, and the habits that the rest of the house relies on."""

import copy
import functools
import inspect
from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from torch import fx, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from kd.errors import ConfigError
from kd.nets.cnn3 import CNN3
from kd.nets.cost import macs, parameters
from kd.nets.layers import channel_shuffle
from kd.nets.mlp import MLP
from kd.nets.mobilenetv2 import MobileNetV2
from kd.nets.resnet_cifar import BottleneckResNet, CifarResNet
from kd.nets.shufflenet_v1 import ShuffleNetV1
from kd.nets.shufflenet_v2 import ShuffleNetV2, SplitBlock
from kd.nets.vgg import VGG
from kd.nets.wrn import WideResNet

CONF = Path(__file__).parents[2] / "conf" / "model"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
BY_NAME = {"resnet18", "resnet34", "resnet50", "torchvision", "timm"}  # written by others
MOBILE = ["mobilenetv2", "shufflenetv1", "shufflenetv2"]
# one of each make
SHALLOW = [
    "mlp",
    "cnn3",
    "resnet8",
    "resnet18_cifar",
    "resnet50_cifar",
    "wrn_16_1",
    "vgg8_bn",
    "vgg13_bn_cifar",
    *MOBILE,
]
OURS = [name for name in NAMES if name not in BY_NAME]

CIFAR = (3, 32, 32)
MNIST = (1, 28, 28)

# At 10 classes; the MLPs on MNIST, the others on CIFAR-10. From the papers' tables, from the distillation tables' code
# (published for 100 classes, less 90 rows of the last layer) or, where neither has one, worked out by hand.
PARAMETERS = {
    "mlp_1200": 2_395_210,
    "mlp_1200_dropout": 2_395_210,
    "mlp_30": 785 * 30 + 31 * 30 + 31 * 10,
    "mlp_16": 785 * 16 + 17 * 10,
    "mlp_400": 785 * 400 + 401 * 400 + 401 * 10,
    "mlp_800": 1_276_810,
    "mlp": 89_610,
    "cnn3": 896_522,
    "cnn3_int8": 896_522,
    "cnn3_pruned": 896_522,
    "cnn3_w12": 28 * 12 + 109 * 24 + 217 * 48 + (48 * 16 + 1) * 24 + 25 * 10,
    "cnn3_w32": 28 * 32 + 289 * 64 + 577 * 128 + (128 * 16 + 1) * 128 + 129 * 10,
    "resnet18": 11_181_642,
    "resnet34": 21_289_802,
    "resnet50": 23_528_522,
    "resnet18_cifar": 11_173_962,
    "resnet20": 278_324 - 90 * 65,
    "resnet20_int8": 278_324 - 90 * 65,
    "resnet20_pruned": 278_324 - 90 * 65,
    "resnet32": 472_756 - 90 * 65,
    "resnet44": 667_188 - 90 * 65,
    "resnet56": 861_620 - 90 * 65,
    "resnet110": 1_736_564 - 90 * 65,
    "vgg13_bn_cifar": 9_416_010,
    "vgg13_bn_wide": 28_334_410,
    "vgg8_bn": 3_965_028 - 90 * 513,
    "vgg11_bn": 9_277_284 - 90 * 513,
    "vgg13_bn": 9_462_180 - 90 * 513,
    "vgg16_bn": 14_774_436 - 90 * 513,
    "vgg19_bn": 20_086_692 - 90 * 513,
    "resnet8": 83_892 - 90 * 65,
    "resnet8x4": 1_233_540 - 90 * 257,
    "resnet32x4": 7_433_860 - 90 * 257,
    "resnet50_cifar": 23_705_252 - 90 * 2049,
    "mobilenetv2": 812_836 - 90 * 1281,
    "shufflenetv1": 949_258 - 90 * 961,
    "shufflenetv2": 1_355_528 - 90 * 1025,
    "wrn_16_1": 180_916 - 90 * 65,
    "wrn_40_1": 569_780 - 90 * 65,
    "wrn_16_2": 703_284 - 90 * 129,
    "wrn_40_2": 2_255_156 - 90 * 129,
}
# Millions at 3x32x32. The published figures for resnet34 and cnn3 are 149.5 and 80.2 MFLOPs, two per MAC.
MACS = {
    "cnn3": 40.04,
    "cnn3_int8": 40.04,
    "cnn3_pruned": 40.04,
    "resnet34": 74.8,
    "resnet18_cifar": 555.4,
    "vgg13_bn_cifar": 228.3,
    "resnet20": 40.8,
}


def image_shape(name):
    return MNIST if name.startswith("mlp") else CIFAR


def build(name, shape=None, classes=10, device="meta", **overrides):
    """Build conf/model/NAME.yaml as the framework does; on "meta", where size costs nothing, unless told otherwise."""
    config = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), overrides)
    config.pop("taps")  # the layers' roles, no argument of the network
    if name == "timm":
        pytest.importorskip("timm")
    if OmegaConf.is_missing(config, "name"):
        config.name = "resnet18"
    inner = config.get("network", config)
    known = inspect.signature(get_object(inner._target_)).parameters
    given = {"num_classes": classes, "image_shape": shape or image_shape(name)}
    inner.update({key: value for key, value in given.items() if key in known})
    with torch.device(device):
        return instantiate(config)


def test_the_listing_line():
    assert len(NAMES) >= 24
    for name in NAMES:
        first, second, *_ = (CONF / f"{name}.yaml").read_text().splitlines()
        assert first.startswith("# ") and len(first) <= 120, name
        assert second.startswith("_target_: kd.nets."), name


@functools.cache
def built(name):
    """Return the network at its usual shape, on "meta", and its fx graph: built once, so not to be changed."""
    model = build(name)
    return model, fx.symbolic_trace(model).graph


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_classes(name):
    model = build(name, classes=7)
    assert model(torch.empty(2, *image_shape(name), device="meta")).shape == (2, 7)


@pytest.mark.parametrize("shape", [MNIST, (1, 8, 8), (2, 33, 47)])
@pytest.mark.parametrize("name", SHALLOW)
def test_other_image_shapes(name, shape):
    if name == "vgg13_bn_cifar" and min(shape[1:]) < 32:
        with pytest.raises(InstantiationException, match="at least 32, but got"):
            build(name, shape)
        return
    assert build(name, shape)(torch.empty(2, *shape, device="meta")).shape == (2, 10)


def test_every_network_of_ours_has_a_published_size():
    assert set(NAMES) - {"torchvision", "timm"} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert parameters(built(name)[0]) == PARAMETERS[name]


@pytest.mark.parametrize("name", MACS)
def test_macs(name):
    assert macs(built(name)[0], CIFAR) / 1e6 == pytest.approx(MACS[name], abs=0.05)


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56, 110])
def test_resnet_parameters_by_hand(depth, shortcut):
    def conv_bn(channels_in, channels_out, kernel=3):
        return channels_in * channels_out * kernel**2 + 2 * channels_out

    blocks = (depth - 2) // 6
    stem_and_head = conv_bn(3, 16) + 64 * 10 + 10
    firsts = sum(conv_bn(a, b) + conv_bn(b, b) for a, b in ((16, 16), (16, 32), (32, 64)))
    rest = sum((blocks - 1) * 2 * conv_bn(b, b) for b in (16, 32, 64))
    projections = conv_bn(16, 32, 1) + conv_bn(32, 64, 1) if shortcut == "conv" else 0
    found = parameters(build(f"resnet{depth}", shortcut=shortcut))
    assert found == stem_and_head + firsts + rest + projections
    if (depth, shortcut) == (20, "pad"):
        assert found == 269_722  # 0.27 M in table 6 of the paper


@pytest.mark.parametrize("name", [*SHALLOW, *sorted(BY_NAME)])
def test_taps_have_the_same_names_in_training_and_evaluation(name):
    train, evaluate = get_graph_node_names(build(name))
    assert train == evaluate


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp_800", {"hidden.0": (800,), "hidden.1": (800,)}),
        ("cnn3", {"layer1": (64, 16, 16), "layer2": (128, 8, 8), "layer3": (256, 4, 4), "fc1": (128,)}),
        ("resnet20", {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8), "flatten": (64,)}),
        ("resnet18_cifar", {"layer1": (64, 32, 32), "layer4": (512, 4, 4), "flatten": (512,)}),
        ("wrn_16_2", {"layer1": (32, 32, 32), "layer3": (128, 8, 8), "relu": (128, 8, 8), "flatten": (128,)}),
        ("resnet50_cifar", {"relu": (64, 32, 32), "layer1": (256, 32, 32), "layer4": (2048, 4, 4), "flatten": (2048,)}),
        (
            "mobilenetv2",
            {"relu": (16, 16, 16), "layer1": (12, 16, 16), "layer2": (16, 8, 8), "layer3": (48, 4, 4)}
            | {"layer4": (160, 2, 2), "relu_1": (1280, 2, 2), "flatten": (1280,)},
        ),
        (
            "shufflenetv1",
            {"relu": (24, 32, 32), "layer1": (240, 16, 16), "layer2": (480, 8, 8), "layer3": (960, 4, 4)}
            | {"layer1.3.add": (240, 16, 16), "flatten": (960,)},
        ),
        (
            "shufflenetv2",
            {"relu": (24, 32, 32), "layer1": (116, 16, 16), "layer2": (232, 8, 8), "layer3": (464, 4, 4)}
            | {"layer1.3.flatten": (116, 16, 16), "relu_1": (1024, 4, 4), "flatten": (1024,)},
        ),
        ("vgg8_bn", {"block0": (64, 32, 32), "block3": (512, 4, 4), "block4": (512, 4, 4), "flatten": (512,)}),
        ("vgg13_bn_cifar", {"block3": (512, 4, 4), "block4": (512, 2, 2), "pool4": (512, 1, 1), "flatten": (512,)}),
    ],
)
def test_taps_are_where_the_docstrings_say(name, expected):
    taps = create_feature_extractor(build(name), return_nodes=list(expected))
    found = taps(torch.empty(2, *image_shape(name), device="meta"))
    assert {tap: tuple(value.shape[1:]) for tap, value in found.items()} == expected


@pytest.mark.parametrize("name", OURS)
def test_every_module_is_used_once(name):
    calls = Counter(node.target for node in built(name)[1].nodes if node.op == "call_module")
    assert calls
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("name", NAMES)
def test_no_module_works_in_place(name):
    model, _ = built(name)
    assert not [path for path, module in model.named_modules() if getattr(module, "inplace", False)]


@pytest.mark.parametrize("name", OURS)
def test_no_call_works_in_place(name):
    for node in built(name)[1].nodes:
        called = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        assert not node.kwargs.get("inplace"), node
        assert not (called.endswith("_") and not called.endswith("__")), node


@pytest.mark.parametrize(
    ("name", "tap", "overrides"),
    [
        ("mlp", "hidden.0.linear", {}),
        ("cnn3", "layer1.conv", {}),
        ("resnet20", "layer1.0.add", {"depth": 8}),
        ("wrn_16_2", "layer1", {"depth": 10, "width": 1}),
        ("vgg8_bn", "block0.bn0", {}),
        ("resnet50_cifar", "layer1.0.add", {"blocks": [1, 1], "width": [8, 8, 8]}),
        ("mobilenetv2", "layer1", {}),
        ("shufflenetv1", "layer1.3.add", {}),
        ("shufflenetv2", "layer1.3.flatten", {}),
        ("torchvision", "layer1.0.add", {}),
    ],
)
def test_a_tap_before_a_relu_keeps_its_negative_values(name, tap, overrides):
    model = build(name, device="cpu", **overrides).eval()
    last = get_graph_node_names(model)[1][-1]  # else the extractor stops at the tap, before anything can overwrite it
    taps = create_feature_extractor(model, return_nodes=[tap, last])
    assert (taps(torch.randn(2, *image_shape(name)))[tap] < 0).any()


def test_shortcut_pad_is_the_papers_option_a():
    block = build("resnet20", device="cpu", depth=8, shortcut="pad").layer2[0]
    x = torch.rand(1, 16, 7, 7)
    found = block.shortcut(x)
    assert found.shape == (1, 32, 4, 4)
    assert torch.equal(found[:, 8:24], x[:, :, ::2, ::2])
    assert found.sum() == found[:, 8:24].sum()


def test_a_wide_block_adds_its_raw_input_or_projects_the_activated_one():
    model = build("wrn_16_2", device="cpu").eval()
    first, second = model.layer1  # 16 -> 32 channels, 32 -> 32 channels
    for block in (first, second):
        nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    activated = torch.relu(x / (1 + first.bn1.eps) ** 0.5)
    torch.testing.assert_close(first(x), nn.functional.conv2d(activated, first.shortcut.weight))
    y = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(second(y), y)


def test_channel_shuffle_deals_the_channels_out():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert channel_shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert channel_shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_a_split_block_is_the_papers_on_activated_images():
    """The paper activates the changed half alone, before the shuffle; the outputs and gradients are the same."""
    torch.manual_seed(0)
    block = SplitBlock(6).eval()
    ours, theirs = (F.relu(torch.randn(2, 6, 5, 5, generator=torch.manual_seed(1))).requires_grad_() for _ in range(2))
    changed = F.relu(block.branch(theirs[:, 3:]))
    expected = torch.stack([theirs[:, :3], changed], dim=2).flatten(1, 2)
    torch.testing.assert_close(block(ours), expected)
    weight = torch.randn_like(expected)
    (block(ours) * weight).sum().backward()
    (expected * weight).sum().backward()
    positive = ours > 0  # at 0 the image itself comes out of a ReLU, which lets no gradient through
    torch.testing.assert_close(ours.grad[positive], theirs.grad[positive])


def test_a_shuffle_block_adds_its_input_or_appends_its_average_pool():
    first, second, *_ = build("shufflenetv1", device="cpu").eval().layer1
    for block in (first, second):
        nn.init.zeros_(block.expand.conv.weight)
    x = torch.rand(1, 24, 6, 6)
    found = first(x)
    assert found.shape == (1, 240, 3, 3)
    assert not found[:, :216].any()
    torch.testing.assert_close(found[0, 216:, 1, 1], x[0, :, 1:4, 1:4].mean((1, 2)))
    y = torch.rand(1, 240, 3, 3)
    torch.testing.assert_close(second(y), y)


def test_an_inverted_residual_adds_its_input_where_the_shape_stays():
    widens, stays = build("mobilenetv2", device="cpu").eval().layer1[1:]  # 8 -> 12, 12 -> 12 channels
    for block in (widens, stays):
        nn.init.zeros_(block.project.conv.weight)
    assert not widens(torch.randn(1, 8, 4, 4)).any()
    x = torch.randn(1, 12, 4, 4)
    torch.testing.assert_close(stays(x), x)


def test_a_bottleneck_adds_its_input():
    block = build("resnet50_cifar", device="cpu", blocks=[2], width=[8, 8]).eval().layer1[1]
    nn.init.zeros_(block.conv3.weight)
    x = torch.rand(1, 32, 4, 4)
    torch.testing.assert_close(block(x), x)


def test_initialisation():
    torch.manual_seed(0)
    for model in (build("resnet20", device="cpu"), build("vgg8_bn", device="cpu"), build("wrn_16_2", device="cpu")):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
                assert module.weight.std().item() == pytest.approx(expected, rel=0.2)
                assert module.bias is None or not module.bias.any()
            if isinstance(module, nn.BatchNorm2d):
                assert torch.equal(module.weight, torch.ones_like(module.weight))
                assert not module.bias.any()


@pytest.mark.parametrize("name", ["mlp", "cnn3", "resnet20", "wrn_16_2", "vgg8_bn", *MOBILE])
def test_a_few_steps_learn_a_batch(name):
    torch.manual_seed(0)
    overrides = {"resnet20": {"depth": 8}, "wrn_16_2": {"depth": 10, "width": 1}}.get(name, {})
    model = build(name, shape=(1, 8, 8), device="cpu", **overrides)
    image, target = torch.randn(8, 1, 8, 8), torch.arange(8)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(image), target)
        optimiser.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_copies_are_equal_and_apart():
    model = build("resnet20", device="cpu", depth=8).eval()
    twin = copy.deepcopy(model)
    image = torch.randn(1, *CIFAR)
    assert torch.equal(model(image), twin(image))
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}


FIXED = {"num_classes": 10, "image_shape": CIFAR}


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (MLP, {"hidden": 100}, "`hidden` to be a list"),
        (MLP, {"hidden": "100"}, "`hidden` to be a list"),
        (MLP, {"hidden": [100, 0]}, r"`hidden\[1\]` to be a whole number of at least 1"),
        (MLP, {"hidden": [100], "dropout": 1.5}, r"`dropout` to be a number in \[0, 1\]"),
        (MLP, {"hidden": [100], "input_dropout": -0.1}, r"`input_dropout` to be a number in \[0, 1\]"),
        (MLP, {"hidden": [100], "num_classes": 0}, "`num_classes`"),
        (MLP, {"hidden": [100], "image_shape": (28, 28)}, r"\(channels, height, width\)"),
        (CNN3, {"width": [8, 16]}, "`width` to hold 3 whole numbers"),
        (CNN3, {"hidden": 0}, "`hidden`"),
        (CNN3, {"image_shape": (3, 32, 7)}, "`image width` to be a whole number of at least 8"),
        (CifarResNet, {"depth": 21}, r"6n \+ 2 \(8, 14, 20, 26, \.\.\.\), but got 21"),
        (CifarResNet, {"depth": 2}, r"6n \+ 2"),
        (CifarResNet, {"depth": 20, "width": [16, 16, 32, 64, 128]}, r"8n \+ 2 \(10, 18"),
        (CifarResNet, {"depth": 8, "width": [16]}, "`width` to hold at least 2 whole numbers"),
        (CifarResNet, {"depth": 20, "shortcut": "pda"}, "Did you mean 'pad'"),
        (CifarResNet, {"depth": 8, "shortcut": "pad", "width": [16, 16, 8, 4]}, "never to fall"),
        (CifarResNet, {"depth": "20"}, "`depth`"),
        (VGG, {"depth": 12}, "one of 8, 11, 13, 16, 19, but got 12"),
        (VGG, {"depth": 13, "pools": 6}, r"`pools` to be a whole number in \[0, 5\]"),
        (VGG, {"depth": 13, "classifier": [0]}, "`classifier"),
        (VGG, {"depth": 13, "dropout": 2}, "`dropout`"),
        (BottleneckResNet, {"blocks": [3, 4, 6]}, "`blocks` to hold 4 whole numbers"),
        (BottleneckResNet, {"blocks": 50}, "`blocks` to be a list"),
        (BottleneckResNet, {"blocks": [1, 0], "width": [8, 8, 8]}, r"`blocks\[1\]`"),
        (MobileNetV2, {"width": 0}, "`width` to be a number above 0"),
        (MobileNetV2, {"width": 0.01}, "`width` to leave at least one of 32 channels, but got 0.01"),
        (MobileNetV2, {"expansion": 0}, "`expansion`"),
        (ShuffleNetV1, {"width": [240, 480]}, "`width` to hold 3 whole numbers"),
        (ShuffleNetV1, {"blocks": [4, 8]}, "`blocks` to hold 3 whole numbers"),
        (ShuffleNetV1, {"groups": 7}, "over 7 groups, but .* a block of 216 channels, 54 inside"),
        (ShuffleNetV1, {"width": [24, 48, 96]}, "a block of 0 channels"),
        (ShuffleNetV2, {"width": [116, 232, 464]}, "`width` to hold 4 whole numbers"),
        (ShuffleNetV2, {"width": [115, 232, 464, 8]}, "`width` to be even"),
        (ShuffleNetV2, {"blocks": [4, 8, 4, 1]}, "`blocks` to hold 3 whole numbers"),
        (WideResNet, {"depth": 18, "width": 2}, r"6n \+ 4 \(10, 16"),
        (WideResNet, {"depth": 16, "width": 0}, "`width`"),
        (WideResNet, {"depth": 16, "width": 2, "dropout": True}, "`dropout`"),
    ],
)
def test_bad_arguments_are_refused(network, arguments, message):
    with pytest.raises(ConfigError, match=message):
        network(**{**FIXED, **arguments})
