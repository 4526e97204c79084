"""Fully connected networks of several students as one, against each student alone."""

import pytest
import torch
from torch import nn
from torch.func import stack_module_state

from kd.lockstep import mlp
from kd.nets.mlp import MLP
from kd.taps import Tapped

STUDENTS, SHAPE = 3, (1, 4, 5)
IMAGES = torch.randn(7, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def student(*layers, taps=()):
    return Tapped(nn.Sequential(*layers).double(), taps)


def without_bias():
    return student(nn.Flatten(), nn.Linear(20, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))


def own(**settings):
    return Tapped(MLP(**{"hidden": [6, 5], "num_classes": 3, "image_shape": SHAPE, **settings}).double())


CASES = {
    "mlp": own,
    "softmax regression": lambda: own(hidden=[]),
    "dropout": lambda: own(dropout=0.4, input_dropout=0.2),
    "without bias": without_bias,
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_those_of_each_student_alone(name):
    students = [CASES[name]() for _ in range(STUDENTS)]
    weights = torch.randn(STUDENTS, len(IMAGES), 3, dtype=torch.float64)
    alone = []
    for one in students:
        torch.manual_seed(5)  # the same mask for all
        alone.append(one(IMAGES).logits)
    (torch.stack(alone) * weights).sum().backward()

    parameters, _ = stack_module_state(students)
    network = mlp.layers(students[0])
    assert network is not None
    torch.manual_seed(5)
    logits = mlp.forward(network, parameters, IMAGES)
    assert logits.shape == weights.shape
    (logits * weights).sum().backward()
    torch.testing.assert_close(logits, torch.stack(alone), rtol=1e-12, atol=1e-12)
    for key, stacked in parameters.items():
        expected = torch.stack([dict(one.named_parameters())[key].grad for one in students])
        torch.testing.assert_close(stacked.grad, expected, rtol=1e-12, atol=1e-12)
        assert stacked.grad.is_contiguous()


def test_nothing_is_dropped_in_eval_mode():
    students = [own(dropout=0.4, input_dropout=0.2).eval() for _ in range(STUDENTS)]
    parameters, _ = stack_module_state(students)
    logits = mlp.forward(mlp.layers(students[0]), parameters, IMAGES)
    torch.testing.assert_close(logits, torch.stack([one(IMAGES).logits for one in students]))


class Twice(nn.Module):
    """Uses its first activation again."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(20, 6), nn.Linear(6, 6)

    def forward(self, image):
        x = self.first(image.flatten(1))
        return x + self.second(x)


class Hidden(Twice):
    """Returns what is not its last layer's output."""

    def forward(self, image):
        x = self.first(image.flatten(1))
        self.second(x)
        return x


class DeadEnd(Twice):
    """Computes what it does not use."""

    def forward(self, image):
        x = self.first(image.flatten(1))
        self.second(x)
        return self.second(x)


class Branching(Twice):
    def forward(self, image):
        return self.first(image.flatten(1)) if image.sum() > 0 else self.second(image)


def hooked(where):
    """A network with a hook at one of its layers, or around several of them."""
    one = own()
    one.get_submodule(where).register_forward_hook(lambda *_: None)
    return one


OTHERS = {
    "taps": lambda: student(nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3), taps=["2"]),
    "another layer": lambda: student(nn.Flatten(), nn.Linear(20, 6), nn.GELU(), nn.Linear(6, 3)),
    "batch norm": lambda: student(nn.Flatten(), nn.Linear(20, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
    "no flatten": lambda: student(nn.Linear(5, 3)),
    "flatten within": lambda: student(nn.Linear(5, 3), nn.Flatten(), nn.Linear(12, 3)),
    "another flatten": lambda: student(nn.Flatten(2), nn.Linear(20, 3)),
    "no linear": lambda: student(nn.Flatten(), nn.ReLU()),
    "a branch": lambda: Tapped(Twice()),
    "an output from within": lambda: Tapped(Hidden()),
    "a dead end": lambda: Tapped(DeadEnd()),
    "not traceable": lambda: Tapped(Branching()),
    "a hook": lambda: hooked("network.fc"),
    "a hook around layers": lambda: hooked("network.hidden"),
    "a hook around the network": lambda: hooked("network"),
    "a parametrised weight": lambda: student(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(20, 3))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_network_is_left_to_vmap(name):
    assert mlp.layers(OTHERS[name]()) is None
