"""A frozen teacher that is made fast gives the logits it gave before."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from kd.cli import conf_dir
from kd.frozen import for_inference, takes_channels_last
from kd.taps import Tapped

CONVOLUTIONAL = (
    "resnet8",
    "resnet18_cifar",
    "vgg8_bn",
    "wrn_16_1",
    "mobilenetv2",
    "shufflenetv1",
    "shufflenetv2",
    "cnn3",
)


def network(name):
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"))
    del node["taps"]
    torch.manual_seed(0)
    made = instantiate(node, num_classes=10, image_shape=(3, 32, 32), _convert_="all").train()
    with torch.no_grad():
        for _ in range(3):  # its statistics are then no longer those of a new network
            made(2 * torch.randn(8, 3, 32, 32) + 0.5)
    return Tapped(made).eval().requires_grad_(False)


IMAGE = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_folded_networks_give_the_same_logits(name):
    plain = network(name)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    expected = plain(IMAGE).logits
    fast = for_inference(plain, IMAGE)
    torch.testing.assert_close(fast(IMAGE).logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(before[key], value) for key, value in plain.state_dict().items())


def test_batch_norm_is_gone_where_it_follows_a_convolution():
    kinds = {type(module) for module in for_inference(network("resnet8"), IMAGE).modules()}
    assert nn.Conv2d in kinds
    assert nn.BatchNorm2d not in kinds


def test_a_fold_that_changes_the_logits_is_thrown_away():
    """One convolution before two batch norms: folding the first would change what the second sees."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.two.running_mean.fill_(5.0)
            self.one.running_var.fill_(9.0)

        def forward(self, image):
            return (self.one(self.conv(image)) + self.two(self.conv(2 * image))).mean((2, 3))

    plain = Tapped(Shared()).eval().requires_grad_(False)
    torch.testing.assert_close(for_inference(plain, IMAGE)(IMAGE).logits, plain(IMAGE).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet8", "cnn3", "wrn_16_1"])
def test_weights_converted_once_are_those_that_autocast_makes(name):
    """To the bit: autocast converts float32 weights to bfloat16 in every call."""
    plain = network(name)
    with torch.no_grad():
        folded = for_inference(plain, IMAGE)
        with torch.autocast("cpu", torch.bfloat16):
            expected = folded(IMAGE).logits
            converted = for_inference(plain, IMAGE)
            assert torch.equal(converted(IMAGE).logits, expected)
    assert {p.dtype for m in converted.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()} == {
        torch.bfloat16
    }


class Viewing(nn.Module):
    """Flattens as much of the field's code does, which images laid out channels last do not allow."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 32 * 32, 10)

    def forward(self, image):
        return self.fc(torch.relu(self.conv(image)).view(len(image), -1))


def test_a_network_with_views_keeps_its_layout():
    tapped = Tapped(Viewing()).train()
    assert not takes_channels_last(tapped, IMAGE)
    assert tapped.network.conv.weight.is_contiguous()
    assert tapped.training
    tapped(IMAGE)


def test_a_convolutional_network_is_laid_out_channels_last():
    tapped = Tapped(network("resnet8").network).train()
    assert takes_channels_last(tapped, IMAGE)
    assert all(
        m.weight.is_contiguous(memory_format=torch.channels_last) for m in tapped.modules() if isinstance(m, nn.Conv2d)
    )
    assert tapped.training


class Cosine(nn.Module):
    """A classifier that reads its layer's weights without calling the layer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, image):
        return (image.mean((2, 3))[:, None] * nn.functional.normalize(self.fc.weight, dim=1)).sum(2)


def test_weights_that_code_reads_beside_the_layer_stay_as_they_are():
    torch.manual_seed(0)
    plain = Tapped(Cosine()).eval().requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(for_inference(plain, IMAGE)(IMAGE).logits, plain(IMAGE).logits)


def test_a_network_with_weights_of_five_dimensions_keeps_its_layout():
    tapped = Tapped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())).train()
    tapped.network.register_parameter("extra", nn.Parameter(torch.ones(1, 2, 1, 1, 1)))
    assert not takes_channels_last(tapped, IMAGE)
    assert tapped.network[0].weight.is_contiguous()
    assert tapped.training


def test_only_images_are_laid_out_channels_last():
    assert takes_channels_last(Tapped(nn.Flatten()), IMAGE)
    assert not takes_channels_last(Tapped(nn.Linear(3, 2)), torch.ones(4, 3))
