"""Pruned networks: the schedule, the final share of zeros, and that nothing else changes."""

import copy

import pytest
import torch
from torch import nn

from kd.errors import ConfigError
from kd.nets.cnn3 import CNN3
from kd.nets.cost import macs, parameters
from kd.nets.pruned import Pruned, kept
from kd.nets.quantized import Quantized
from kd.nets.resnet_cifar import CifarResNet
from tests.nets.wrapped import check_a_resume, check_a_round_trip, check_copies, check_taps, learned, trained

SHAPE = (3, 16, 16)


def cnn():
    return CNN3([4, 8, 8], 16, num_classes=10, image_shape=SHAPE)


def layers(network):
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def zeros(network):
    return [int((layer.weight == 0).sum()) for layer in layers(network)]


def final(network, sparsity):
    return [round(sparsity * layer.weight.numel()) for layer in layers(network)]


def test_the_smallest_magnitudes_go_and_of_equals_the_first():
    weight = torch.tensor([[3.0, -1.0, 0.5], [0.5, -4.0, 0.5]])
    assert kept(weight, 0).all()
    assert kept(weight, 2).tolist() == [[True, True, False], [False, True, True]]
    assert kept(weight, 4).tolist() == [[True, False, False], [False, True, False]]


def test_the_share_of_zeros_grows_as_published():
    """Zhu and Gupta, equation 1, from 0 at step 0: s (1 - (1 - t / ramp)^3), renewed at fifth steps and the last."""
    network = Pruned(cnn(), sparsity=0.8, ramp=7, every=5)
    expected = [0.8 * (1 - (1 - t / 7) ** 3) for t in (0, 0, 0, 0, 0, 5, 5, 7, 7, 7)]
    for share in expected:
        network(torch.randn(2, *SHAPE))
        assert zeros(network) == pytest.approx([share * layer.weight.numel() for layer in layers(network)], abs=1.5)
    assert network.step == len(expected)
    assert zeros(network) == final(network, 0.8)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.95])
def test_the_final_share_is_exact_and_stays(sparsity):
    network = trained(Pruned(cnn(), sparsity, ramp=2, every=1), SHAPE, steps=6)
    assert zeros(network) == final(network, sparsity)
    gone = [layer.weight == 0 for layer in layers(network)]
    trained(network, SHAPE, steps=4)
    assert all(torch.equal(before, layer.weight == 0) for before, layer in zip(gone, layers(network), strict=True))
    assert zeros(network.eval()) == final(network, sparsity)


def test_in_evaluation_the_share_is_the_final_one_at_any_time():
    network = Pruned(cnn(), 0.8, ramp=1000, every=1)
    assert zeros(network) == [0] * 5
    for steps in (0, 3):
        trained(network.train(), SHAPE, steps)
        assert sum(zeros(network)) < sum(final(network, 0.8))
        state = {name: value.clone() for name, value in network.state_dict().items()}
        assert zeros(network.eval()) == final(network, 0.8)
        image = torch.randn(2, *SHAPE)
        assert torch.equal(network(image), network(image))
        assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_counts_are_read_once_until_they_are_written_to(monkeypatch):
    """A GPU is waited for at each reading."""
    read = []
    monkeypatch.setattr("kd.nets.pruned.int", lambda tensor: read.append(tensor.ndim) or int(tensor), raising=False)
    network = trained(Pruned(cnn(), 0.8, ramp=3, every=1), SHAPE, steps=2)
    trained(network, SHAPE, steps=3)
    network.eval()(torch.randn(2, *SHAPE))
    assert len(read) == 1

    network.load_state_dict(Pruned(cnn(), 0.8, ramp=3, every=1).state_dict())
    assert zeros(network) == final(network, 0.8)
    assert len(read) == 6  # the masks of five layers
    trained(network.train(), SHAPE, steps=2)
    assert len(read) == 7
    assert network.step == 2

    twin = trained(copy.deepcopy(network), SHAPE, steps=2)
    assert len(read) == 8
    assert (network.step, twin.step) == (2, 4)


def test_a_mask_of_inference_mode_is_read_every_time():
    """There torch does not count what is written to a tensor."""
    with torch.inference_mode():
        network = Pruned(cnn(), 0.5).eval()
        assert zeros(network) == final(network, 0.5)
        for layer in layers(network):
            own = layer.parametrizations.weight[0]
            own.mask.copy_(kept(torch.randn(own.mask.shape), own.removed))
            assert torch.equal(layer.weight != 0, own.mask)


def test_a_masked_weight_gets_no_gradient():
    network = Pruned(cnn(), 0.5, ramp=1, every=1)
    for _ in range(2):
        network(torch.randn(2, *SHAPE)).square().sum().backward()
    layer = network.network.layer2.conv
    network.zero_grad()
    network(torch.randn(2, *SHAPE)).square().sum().backward()
    gradient = layer.parametrizations.weight.original.grad
    assert not gradient[layer.weight == 0].any()
    assert gradient[layer.weight != 0].any()


def test_it_costs_what_the_dense_network_costs():
    assert parameters(Pruned(cnn())) == parameters(cnn())
    assert macs(Pruned(cnn()), SHAPE) == macs(cnn(), SHAPE)
    with torch.device("meta"):
        assert macs(Pruned(cnn()), SHAPE) == macs(cnn(), SHAPE)


def test_it_starts_where_the_dense_network_starts():
    torch.manual_seed(1)
    plain = cnn()
    torch.manual_seed(1)
    pruned = Pruned(cnn())
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(layers(plain), layers(pruned), strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pruned(cnn(), 0.5, ramp=10, every=2),
        lambda: Pruned(CifarResNet(8, num_classes=10, image_shape=SHAPE), 0.5, ramp=10, every=2),
        lambda: Pruned(Quantized(cnn(), averaging=0.5), 0.5, ramp=10, every=2),
    ],
)
def test_it_learns_a_batch(make):
    assert learned(make(), SHAPE)


@pytest.mark.parametrize("ramp", [2, 50], ids=["fixed masks", "growing masks"])
def test_it_survives_what_the_house_does_to_networks(tmp_path, ramp):
    def make():
        return Pruned(cnn(), 0.8, ramp=ramp, every=1)

    check_copies(make, SHAPE)
    assert "network.layer1.conv.parametrizations.weight.0.mask" in check_a_round_trip(make, SHAPE, tmp_path)
    check_taps(make, SHAPE)
    check_a_resume(make, SHAPE)


def test_a_quantised_network_can_be_pruned():
    network = trained(Pruned(Quantized(cnn()), 0.8, ramp=2, every=1), SHAPE, steps=4).eval()
    assert zeros(network) == final(network, 0.8)
    rounded = network.network.network.fc1.input
    assert rounded.high > rounded.low
    assert torch.equal(network(torch.zeros(1, *SHAPE)), network(torch.zeros(1, *SHAPE)))


def test_autocast():
    network = Pruned(cnn(), ramp=1, every=1)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(4, *SHAPE))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pruned(nn.ReLU()), "can be pruned, but there is none"),
        (lambda: Pruned(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(3, 2, 1))), r"1\.weight of Sequential are others"),
        (lambda: Pruned(cnn(), 1.0), "leaves layer 'layer1.conv' no weight"),
        (lambda: Pruned(cnn(), 1.5), "`sparsity`"),
        (lambda: Pruned(cnn(), ramp=0), "`ramp`"),
        (lambda: Pruned(cnn(), every=0), "`every`"),
    ],
)
def test_what_cannot_be_pruned_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
