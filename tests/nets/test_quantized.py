"""Quantisation-aware networks, against PyTorch's own fake quantisation."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd.errors import ConfigError
from kd.nets.cnn3 import CNN3
from kd.nets.cost import macs, parameters
from kd.nets.pruned import Pruned
from kd.nets.quantized import MovingRange, Quantized, QuantizedConv2d, QuantizedLinear, quantized_weight
from kd.nets.resnet_cifar import CifarResNet
from tests.nets.wrapped import check_a_resume, check_a_round_trip, check_copies, check_taps, learned

SHAPE = (3, 16, 16)


def cnn():
    return CNN3([4, 8, 8], 16, num_classes=10, image_shape=SHAPE)


def range_of(low, high, bits=8):
    made = MovingRange(torch.zeros(()), bits, 0.1)
    made.low.fill_(low)
    made.high.fill_(high)
    return made.eval()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weights_are_those_of_torchs_fake_quantisation_per_channel(bits):
    weight = torch.randn(5, 3, 3, 3)
    weight[1] *= 100
    highest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax((1, 2, 3)) / highest
    zero = torch.zeros(5, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -highest, highest)
    torch.testing.assert_close(quantized_weight(weight, bits), expected)
    assert quantized_weight(weight, bits)[0].unique().numel() <= 2 * highest + 1


def test_a_channel_of_zeros_stays_zero_with_a_finite_gradient():
    weight = torch.zeros(2, 3, requires_grad=True)
    rounded = quantized_weight(weight, 8)
    rounded.sum().backward()
    assert not rounded.any()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 0.7), (-2.0, 0.0)])
def test_activations_are_those_of_torchs_fake_quantisation_per_tensor(low, high):
    x = 3 * torch.randn(1000)
    scale = (high - low) / 255
    expected = torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 255)
    torch.testing.assert_close(range_of(low, high)(x), expected)
    assert (range_of(low, high)(torch.zeros(1)) == 0).all()  # 0 is a level


def test_the_gradient_passes_straight_through_within_the_range_and_not_beyond():
    ours, theirs = (torch.linspace(-2, 2, 1001).requires_grad_() for _ in range(2))
    range_of(-0.5, 1.5)(ours).sum().backward()
    torch.fake_quantize_per_tensor_affine(theirs, 2 / 255, 64, 0, 255).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ours.grad[0] == ours.grad[-1] == 0
    assert (ours.grad[400:850] == 1).all()
    weight = torch.randn(4, 6, requires_grad=True)
    quantized_weight(weight, 8).sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones_like(weight))


def test_the_range_follows_training_as_a_moving_average_and_rests_in_evaluation():
    made = MovingRange(torch.zeros(()), 8, 0.1)
    x = torch.tensor([1.0, 5.0])
    assert torch.equal(made.eval()(x), x)  # nothing seen yet
    made.train()(x)
    assert (made.low, made.high) == (0, 5)
    made(torch.tensor([-2.0, 15.0]))
    torch.testing.assert_close((made.low.item(), made.high.item()), (-0.2, 6.0))
    made.eval()(torch.tensor([-100.0, 100.0]))
    torch.testing.assert_close((made.low.item(), made.high.item()), (-0.2, 6.0))


def test_a_network_computes_with_rounded_inputs_and_weights():
    network = Quantized(cnn())
    image = torch.randn(4, *SHAPE)
    network(image)
    x, inner = image, network.eval().network
    for layer in (inner.layer1, inner.layer2, inner.layer3):
        x = F.conv2d(layer.conv.input(x), quantized_weight(layer.conv.weight, 8), layer.conv.bias, padding=1)
        x = F.max_pool2d(F.relu(x), 2)
    x = F.relu(F.linear(inner.fc1.input(x.flatten(1)), quantized_weight(inner.fc1.weight, 8), inner.fc1.bias))
    x = F.linear(inner.fc2.input(x), quantized_weight(inner.fc2.weight, 8), inner.fc2.bias)
    assert torch.equal(network(image), x)
    assert not torch.equal(x, cnn_with_weights_of(inner)(image))


def cnn_with_weights_of(inner):
    plain = cnn()
    plain.load_state_dict({name: value for name, value in inner.state_dict().items() if ".input." not in name})
    return plain


def test_it_costs_what_the_plain_network_costs():
    assert parameters(Quantized(cnn())) == parameters(cnn())
    assert macs(Quantized(cnn()), SHAPE) == macs(cnn(), SHAPE)


def test_it_starts_where_the_plain_network_starts():
    torch.manual_seed(1)
    plain = cnn()
    torch.manual_seed(1)
    assert all(map(torch.equal, plain.parameters(), Quantized(cnn()).parameters()))


def test_every_convolution_and_linear_layer_is_rounded():
    network = Quantized(CifarResNet(8, num_classes=10, image_shape=SHAPE))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 10
    assert all(isinstance(layer, QuantizedConv2d | QuantizedLinear) for layer in layers)


def test_folding_a_batch_norm_changes_no_integer():
    weight, factor = torch.randn(4, 3, 3, 3), torch.tensor([0.1, 1.0, 3.0, 20.0]).view(4, 1, 1, 1)
    torch.testing.assert_close(quantized_weight(weight * factor, 8), quantized_weight(weight, 8) * factor)


@pytest.mark.parametrize("make", [cnn, lambda: CifarResNet(8, num_classes=10, image_shape=SHAPE)])
def test_it_learns_a_batch_at_four_bits(make):
    assert learned(Quantized(make(), bits=4, averaging=0.5), SHAPE)


def test_it_survives_what_the_house_does_to_networks(tmp_path):
    check_copies(lambda: Quantized(cnn()), SHAPE)
    check_round_trip = check_a_round_trip(lambda: Quantized(cnn()), SHAPE, tmp_path)
    assert "network.layer1.conv.input.high" in check_round_trip
    check_taps(lambda: Quantized(cnn()), SHAPE)
    check_a_resume(lambda: Quantized(cnn()), SHAPE)


def test_autocast_rounds_in_single_precision():
    network = Quantized(cnn())
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(4, *SHAPE))
    out.float().sum().backward()
    assert network.network.fc1.input.high.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_double_precision_stays_double():
    assert Quantized(cnn()).double()(torch.randn(2, *SHAPE, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantized(nn.ReLU()), "there is none"),
        (lambda: Quantized(nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2))), r"1\.weight of Sequential are others"),
        (lambda: Quantized(Pruned(cnn())), "put the pruning around the quantisation"),
        (lambda: Quantized(cnn(), bits=1), "`bits`"),
        (lambda: Quantized(cnn(), bits=16), "`bits`"),
        (lambda: Quantized(cnn(), averaging=0), "`averaging`"),
        (lambda: Quantized("cnn3"), "Expected `network` to be a network"),
    ],
)
def test_what_cannot_be_quantised_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
