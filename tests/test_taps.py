"""Taps are what the network's own modules give, in either mode, and belong to its own parameters."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kd.errors import ConfigError
from kd.taps import Tapped
from kd.types import Output

IMAGE = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
MODES = pytest.mark.parametrize("training", [True, False])


class Small(nn.Module):
    """A network with batch-norm, a buffer of its own, an activation without a module and a head of two layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU())
        self.register_buffer("scale", torch.tensor([0.5, 1, 2, 4, 8]).view(5, 1, 1))
        self.head = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, image):
        x = F.relu(self.norm(self.conv(image)))
        return self.head((self.body(x) * self.scale).mean((2, 3)))


def by_hand(network, image):
    """Every tap of `Small`, one module after another."""
    taps = {"conv": network.conv(image)}
    taps["norm"] = network.norm(taps["conv"])
    taps["relu"] = taps["norm"].clamp(min=0)
    taps["body.0"] = network.body[0](taps["relu"])
    taps["body"] = taps["body.1"] = taps["body.0"].clamp(min=0)
    taps["mul"] = taps["body"] * network.scale
    taps["mean"] = taps["mul"].mean((2, 3))
    taps["head.0"] = network.head[0](taps["mean"])
    taps["head.1"] = taps["head.0"].clamp(min=0)
    taps["head"] = taps["head.2"] = network.head[2](taps["head.1"])
    return taps


ALL = tuple(by_hand(Small(), IMAGE))


@MODES
@pytest.mark.parametrize("names", [ALL, *[(name,) for name in ALL], ("body.1", "body"), ("head", "head.2", "conv")])
def test_equal_to_the_modules_one_by_one(names, training):
    network = Small().train(training)
    reference = copy.deepcopy(network)
    output = Tapped(network, names)(IMAGE)
    expected = by_hand(reference, IMAGE)
    assert list(output.taps) == list(names)
    for name in names:
        torch.testing.assert_close(output.taps[name], expected[name])
    torch.testing.assert_close(output.logits, expected["head"])
    torch.testing.assert_close(network.state_dict(), reference.state_dict())  # the same batch-norm statistics


def test_each_mode_has_its_own_forward():
    network = Small()
    tapped, reference = Tapped(network, ["norm"]), copy.deepcopy(network)
    for training in (True, False, True, True, False):
        tapped.train(training)
        reference.train(training)
        torch.testing.assert_close(tapped(IMAGE).taps["norm"], reference.norm(reference.conv(IMAGE)))
    assert network.norm.num_batches_tracked == 3


@MODES
def test_with_and_without_taps_the_logits_are_equal(training):
    network = Small().train(training)
    plain, tapped = Tapped(copy.deepcopy(network)), Tapped(network, ["body"])
    output = plain(IMAGE)
    assert output.taps == {}
    assert torch.equal(output.logits, tapped(IMAGE).logits)


def test_dropout_follows_the_mode():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 50)

        def forward(self, image):
            return F.dropout(self.fc(image), 0.5, self.training)

    tapped = Tapped(Dropping(), ["fc"])
    output = tapped(IMAGE)
    assert (output.logits == 0).any()
    output = tapped.eval()(IMAGE)
    assert torch.equal(output.logits, output.taps["fc"])


def test_a_frozen_batch_norm_stays_frozen():
    """The modes of the modules are the network's business, however its taps are switched."""
    network = Small()
    tapped = Tapped(network, ["body"])
    for _ in range(2):
        tapped.eval()(IMAGE)
        tapped.train()
        network.norm.eval()
        before = network.norm.running_mean.clone()
        tapped(IMAGE)
        assert torch.equal(network.norm.running_mean, before)


@MODES
def test_tracing_leaves_every_mode_as_it_was(training):
    network = Small().train(training)
    network.norm.train(not training)
    Tapped(network, ["body"])
    assert network.training is network.body.training is training
    assert network.norm.training is not training


def test_gradients_reach_the_network_s_own_parameters():
    network = Small()
    reference = copy.deepcopy(network)
    output = Tapped(network, ["body", "norm"])(IMAGE)
    (output.logits.sum() + output.taps["body"].square().sum()).backward()
    expected = by_hand(reference, IMAGE)
    (expected["head"].sum() + expected["body"].square().sum()).backward()
    for (name, ours), theirs in zip(network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


def test_nothing_is_registered_twice():
    network = Small()
    tapped = Tapped(network, ["body"])
    assert list(tapped.state_dict()) == [f"network.{name}" for name in network.state_dict()]
    assert len(list(tapped.parameters())) == len(list(network.parameters()))
    assert [name for name, _ in tapped.named_children()] == ["network"]


def test_a_copy_is_a_network_of_its_own():
    tapped = Tapped(Small(), ["body", "norm"])
    copied = copy.deepcopy(tapped)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert (copied(IMAGE).taps["norm"] == 0).all()
    assert (tapped(IMAGE).taps["norm"] != 0).any()
    assert copied.network.norm.num_batches_tracked == tapped.network.norm.num_batches_tracked == 1
    copied(IMAGE).taps["norm"].sum().backward()
    assert tapped.network.norm.bias.grad is None
    assert (copied.network.norm.bias.grad != 0).all()


def test_taps_move_with_the_network():
    """Parameters and buffers are looked up when they are used: those of the device and type of now."""
    tapped = Tapped(Small(), ["mul"])
    tapped.network.to("meta")
    output = tapped(IMAGE.to("meta"))
    assert output.taps["mul"].device.type == output.logits.device.type == "meta"


def test_loaded_weights_are_the_taps_weights():
    tapped, other = Tapped(Small(), ["conv"]), Small()
    tapped.network.load_state_dict(other.state_dict())
    assert torch.equal(tapped(IMAGE).taps["conv"], other.conv(IMAGE))


def test_no_output_is_the_last_operation():
    """A network may calculate something after, or beside, what it returns."""

    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 3)
            self.aside = nn.Linear(8, 2)

        def forward(self, image):
            logits = self.fc(image)
            self.aside(image)
            return logits

    network = Aside()
    output = Tapped(network, ["aside"])(IMAGE)
    assert torch.equal(output.logits, network.fc(IMAGE))
    assert torch.equal(output.taps["aside"], network.aside(IMAGE))


def test_a_layer_may_be_called_like_an_argument():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.input = nn.Linear(8, 4)
            self.logits = nn.Linear(4, 3)

        def forward(self, x):
            return self.logits(self.input(x)) * 2

    network = Named()
    output = Tapped(network, ["input", "logits"])(IMAGE)
    assert torch.equal(output.taps["input"], network.input(IMAGE))
    assert torch.equal(output.logits, output.taps["logits"] * 2)


def test_a_layer_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, image):
            return self.fc(self.fc(image))

    network = Twice()
    output = Tapped(network, ["fc", "fc_1"])(IMAGE)
    assert torch.equal(output.taps["fc"], network.fc(IMAGE))
    assert torch.equal(output.taps["fc_1"], network.fc(network.fc(IMAGE)))


# --- unknown names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bodies", "body.2", "network.body", "image", "scale", ""])
def test_unknown_layer(name):
    with pytest.raises(ConfigError) as error:
        Tapped(Small(), ["conv", name], owner="student")
    assert f"Unknown layer {name!r} of the student." in str(error.value)
    for known in ALL:
        assert known in str(error.value)


def test_the_nearest_layer_is_suggested():
    with pytest.raises(ConfigError, match=r"Did you mean 'body'\?"):
        Tapped(Small(), ["bodi"])


# --- networks that fx does not follow ---------------------------------------------------------------------------------


class Branching(Small):
    """Python that depends on the pixels cannot be traced."""

    def forward(self, image):
        if image.sum() > 0:
            image = -image
        return super().forward(image)


class Own(Branching):
    """Gives its taps itself."""

    def forward(self, image):
        if image.sum() > 0:
            image = -image
        features = self.conv(image)
        return Output(self.head(features.mean((2, 3)).repeat(1, 2)[:, :5]), {"features": features})


class OwnTraceable(Small):
    def forward(self, image):
        features = self.conv(image)
        return Output(self.head(self.body(features).mean((2, 3))), {"features": features})


def test_an_untraceable_network_runs_without_taps():
    network = Branching().eval()
    output = Tapped(network)(IMAGE)
    assert torch.equal(output.logits, network(IMAGE))


@MODES
def test_an_untraceable_network_with_taps(training):
    tapped = Tapped(Branching().train(training), ["body"], owner="teacher")
    with pytest.raises(ConfigError, match=r"The teacher's network Branching cannot be traced .* kd\.types\.Output"):
        tapped(IMAGE)
    assert all(module.training is training for module in tapped.network.modules())


@pytest.mark.parametrize("make", [Own, OwnTraceable])
@pytest.mark.parametrize("names", [(), ("features",)])
def test_a_network_that_gives_its_taps_itself(make, names):
    network = make()
    output = Tapped(network, names)(IMAGE)
    assert isinstance(output, Output)
    assert torch.equal(output.taps["features"], network(IMAGE).taps["features"])
    assert output.logits.shape == (6, 3)


@pytest.mark.parametrize("make", [Own, OwnTraceable])
def test_a_network_that_gives_other_taps(make):
    with pytest.raises(ConfigError, match=r"Unknown layer 'feature' of the network\. Did you mean 'features'\?"):
        Tapped(make(), ["feature"])(IMAGE)


def test_in_place_modules_do_not_overwrite_the_tap_before_them():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
    tapped = Tapped(network, ["1"])
    assert tapped(torch.randn(4, 8)).taps["1"].min() < 0


class InPlace(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.norm = nn.BatchNorm1d(8)

    def forward(self, image):
        x = self.norm(image)
        if self.how == "method":
            return x.relu_()
        if self.how == "function":
            return torch.nn.functional.relu(x, inplace=True)
        x += image
        return x


def test_in_place_operators_do_not_overwrite_a_tap():
    tapped, image = Tapped(InPlace("operator"), ["norm"]), torch.randn(4, 8)
    logits, taps = tapped(image)
    torch.testing.assert_close(taps["norm"] + image, logits)


@pytest.mark.parametrize("how", ["method", "function"])
def test_a_tap_that_the_code_overwrites_is_refused(how):
    with pytest.raises(ConfigError, match="in place"):
        Tapped(InPlace(how), ["norm"])
