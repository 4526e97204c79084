"""Counting, against layers counted by hand, and that counting leaves no trace."""

import pytest
import torch
from torch import nn

from kd.nets.cost import macs, parameters, size_bytes
from kd.nets.mlp import MLP
from kd.nets.wrn import WideResNet


class Counting(nn.Module):
    """A network that counts its calls in a buffer, in place and by assignment, in any mode."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("more", torch.zeros(()), persistent=False)

    def forward(self, image):
        self.calls.add_(1)
        self.more = self.more + 1
        return self.bn(self.conv(image)).mean((2, 3))


def test_parameters_count_frozen_ones_and_shared_ones_once():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, shared, nn.BatchNorm1d(3))
    shared.weight.requires_grad_(False)
    assert parameters(model) == 9 + 3 + 3 + 3


def test_size_counts_weights_and_buffers_as_they_are_stored_shared_ones_once():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, shared, nn.BatchNorm1d(3), nn.Linear(3, 1, bias=False).half())
    assert size_bytes(model) == 4 * (9 + 3) + 4 * (3 + 3 + 3 + 3) + 8 + 2 * 3


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 16 * 16 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), 8 * 8 * 8 * 3 * 9),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 16 * 16 * 6 * 9),
        (nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), 7680),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), 0),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_macs_by_hand(model, expected, device):
    assert macs(model.to(device), (3, 16, 16)) == expected


def test_macs_of_double_precision():
    model = MLP([5], num_classes=3, image_shape=(1, 2, 2)).double()
    assert macs(model, (1, 2, 2)) == 4 * 5 + 5 * 3


def test_attention_is_counted():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, num_heads=2, batch_first=True)

        def forward(self, image):
            tokens = image.flatten(1, 2)
            return self.attention(tokens, tokens, tokens, need_weights=False)[0]

    fastpath = torch.backends.mha.get_fastpath_enabled()
    tokens, width = 4 * 4, 8
    projections = 4 * tokens * width * width  # query, key, value, output
    products = 2 * tokens * tokens * width  # scores, weighted sum
    assert macs(Attention(), (4, 4, width)) == projections + products
    assert torch.backends.mha.get_fastpath_enabled() == fastpath


def test_macs_leave_the_model_as_it_was():
    model = nn.Sequential(WideResNet(10, 1, dropout=0.5, num_classes=10, image_shape=(3, 8, 8)), nn.Dropout())
    model[0].layer2.eval()  # frozen in part, as a partly frozen backbone is
    flags = {path: module.training for path, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert len(set(flags.values())) == 2

    first = macs(model, (3, 8, 8))

    assert macs(model, (3, 8, 8)) == first > 0
    assert {path: module.training for path, module in model.named_modules()} == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_macs_leave_counters_as_they_were():
    model = Counting()
    assert macs(model, (3, 8, 8)) == 4 * 4 * 4 * 3 * 9
    assert model.calls == 0
    assert model.more == 0


def test_macs_restore_the_model_after_a_failure():
    model = WideResNet(10, 1, num_classes=10, image_shape=(3, 8, 8))
    with pytest.raises(RuntimeError):
        macs(model, (1, 8, 8))
    assert all(module.training for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
