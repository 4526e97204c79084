"""Deep mutual learning against its equations, written out in loops."""

import math

import pytest
import torch
from torch import nn

from kd.errors import ConfigError
from kd.losses.mutual import MutualLearning, mutual_loss
from kd.types import Output
from tests.losses.logit_checks import (
    TEMPERATURE,
    C,
    LogitChecks,
    a_batch,
    a_setting,
    bad_temperatures,
    example,
    softmax,
    tempered_divergence,
)


def cross_entropy(logits, target):
    return sum(-math.log(softmax(row, 1.0)[y]) for row, y in zip(logits, target, strict=True)) / len(target)


class TestMutual(LogitChecks):
    """The part that has a teacher; the cross-entropy is tested below."""

    learning_rate = 1.0

    @staticmethod
    def loss(student, teacher, _target):
        return mutual_loss(student, teacher)

    @staticmethod
    def oracle(student, teacher, _target):
        return tempered_divergence(student, teacher, 1.0)


class TestMutualOfACohort(LogitChecks):
    """Two peers that agree with each other, at another temperature."""

    @staticmethod
    def loss(student, teacher, _target):
        return mutual_loss(student, [teacher, teacher], temperature=2.0)

    @staticmethod
    def oracle(student, teacher, _target):
        return tempered_divergence(student, teacher, 2.0)


def test_cross_entropy_is_added_for_a_target():
    student, peer, target = example()
    expected = tempered_divergence(student.tolist(), peer.tolist(), 1.0)
    expected += cross_entropy(student.tolist(), target.tolist())
    assert mutual_loss(student, peer, target).item() == pytest.approx(expected, rel=1e-10)


def test_divergence_is_averaged_over_the_peers():
    student, first, _ = example()
    second = example(seed=1)[1]
    expected = sum(tempered_divergence(student.tolist(), peer.tolist(), 1.0) for peer in (first, second)) / 2
    assert mutual_loss(student, [first, second]).item() == pytest.approx(expected, rel=1e-10)


def test_bad_arguments():
    student, peer, target = example()
    with pytest.raises(ConfigError, match="at least one peer, but got none"):
        mutual_loss(student, [])
    with pytest.raises(ConfigError, match=r"target \(3,\)"):
        mutual_loss(student, peer, target[:3])
    for bad in (0, -1, 1.5, True, "two"):
        with pytest.raises(ConfigError, match=f"`peers` to be a whole number of at least 1, but got {bad!r}"):
            MutualLearning(peers=bad)


@bad_temperatures
def test_bad_temperature(bad):
    student, peer, _ = example()
    with pytest.raises(ConfigError, match=TEMPERATURE):
        mutual_loss(student, peer, temperature=bad)
    with pytest.raises(ConfigError, match=TEMPERATURE):
        MutualLearning(temperature=bad)


# --- the term ---------------------------------------------------------------------------------------------------------


class Tapped(nn.Module):
    """A network that answers with an `Output`."""

    def __init__(self):
        super().__init__()
        self.network = new_network()

    def forward(self, image):
        return Output(self.network(image), {})


def new_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, C), nn.BatchNorm1d(C)).double()


def built(peers=1, temperature=1.0, new_peer=new_network):
    term = MutualLearning(peers=peers, temperature=temperature)
    term.build(a_setting(new_peer=new_peer))
    return term


def a_case():
    student, _, target = example()
    batch = a_batch(target)
    return student, batch._replace(image=torch.randn(len(target), 1, 2, 2, dtype=torch.float64))


@pytest.mark.parametrize("peers", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_every_network_gets_its_own_loss_and_no_other(peers, temperature):
    term = built(peers, temperature)
    student, batch = a_case()
    value = term(Output(student, {}), None, batch)
    value.backward()

    networks = list(term.delivered().values())
    cohort = [student.tolist(), *(network(batch.image).tolist() for network in networks)]
    target = batch.target.tolist()
    expected = 0.0
    for k, logits in enumerate(cohort):
        divergences = [
            tempered_divergence(logits, other, temperature) for place, other in enumerate(cohort) if place != k
        ]
        expected += sum(divergences) / peers
        expected += cross_entropy(logits, target) if k else 0.0
    assert value.item() == pytest.approx(expected, rel=1e-10)

    # the gradient of the sum is, for each network, that of its own loss with the others fixed
    logits = [student.detach(), *(network(batch.image).detach() for network in networks)]
    own = student.detach().clone().requires_grad_()
    mutual_loss(own, logits[1:], temperature=temperature).backward()
    torch.testing.assert_close(student.grad, own.grad)
    for k, network in enumerate(networks, start=1):
        ours = [parameter.grad.clone() for parameter in network.parameters()]
        network.zero_grad()
        others = logits[:k] + logits[k + 1 :]
        mutual_loss(network(batch.image), others, batch.target, temperature=temperature).backward()
        for found, wanted in zip(ours, network.parameters(), strict=True):
            torch.testing.assert_close(found, wanted.grad)


def test_peers_are_parts_that_train_and_are_delivered():
    term = built(peers=3)
    assert list(term.delivered()) == ["peer", "peer-2", "peer-3"]
    assert term.delivered()["peer"] is term.peer
    assert len({id(network) for network in term.delivered().values()}) == 3
    assert not torch.equal(term.peer[1].weight, term.delivered()["peer-2"][1].weight)
    assert len(list(term.parameters())) == 3 * 4
    assert term.train().peer.training
    assert not term.eval().peer.training
    assert list(built().delivered()) == ["peer"]
    assert MutualLearning.needs_peer
    assert not MutualLearning.needs_teacher


def test_a_peer_may_answer_with_an_output():
    term = built(new_peer=Tapped)
    student, batch = a_case()
    plain = built()
    plain.peer.load_state_dict(term.peer.network.state_dict())
    torch.testing.assert_close(term(Output(student, {}), None, batch), plain(Output(student, {}), None, batch))


def test_twenty_steps_lower_the_sum():
    term = built()
    student, batch = a_case()
    optimizer = torch.optim.SGD([student, *term.parameters()], lr=0.3)
    values = []
    for _ in range(20):
        value = term(Output(student, {}), None, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.6 * values[0]


def test_no_peer_can_be_made():
    with pytest.raises(ConfigError, match="needs an untrained network beside the student"):
        MutualLearning().build(a_setting())
