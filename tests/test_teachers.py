"""Teachers never learn and never drift; ensembles, averages and hand-made teachers are what their formulas say."""

import hashlib
import math
from functools import partial

import pytest
import torch
from torch import nn

from kd.distiller import Distiller
from kd.errors import ConfigError
from kd.losses.configure import build_objective
from kd.nets.quantized import Quantized
from kd.optim import constant
from kd.taps import Tapped
from kd.teachers import Ema, Ensemble, Frozen, NoTeacher, Virtual
from kd.types import Batch

CLASSES = 4


class Normed(nn.Module):
    """Batch-norm and dropout: both behave otherwise in training."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, image):
        return self.head(self.drop(self.norm(self.fc(image.flatten(1)))))


def batch(seed=0, images=5):
    generator = torch.Generator().manual_seed(seed)
    image = 3 * torch.randn(images, 1, 2, 3, generator=generator) + 1
    return Batch(image, torch.randint(CLASSES, (images,), generator=generator), torch.arange(images))


def digest(network):
    """A hash of every weight and statistic."""
    content = hashlib.sha256()
    for name, value in network.state_dict().items():
        content.update(name.encode() + value.numpy().tobytes())
    return content.hexdigest()


def trained():
    """A network whose batch-norm statistics are no longer those of a new one."""
    network = Normed()
    for seed in range(3):
        network(batch(seed).image)
    return network


def distiller(student, teacher):
    terms = {"kl": {"_target_": "kd.losses.kd.KD", "weight": 1.0, "temperature": 2.0}}
    objective = build_objective({"name": "kd", "terms": terms})
    make = partial(torch.optim.SGD, lr=0.1)
    return Distiller("student", Tapped(student), teacher, objective, make, constant, seed=0)


# --- a trained network ------------------------------------------------------------------------------------------------


def test_frozen_gives_the_network_s_eval_output():
    network = trained()
    teacher = Frozen(Tapped(network, ["norm"]))
    output = teacher(batch())
    network.eval()
    assert torch.equal(output.logits, network(batch().image))
    assert torch.equal(output.taps["norm"], network.norm(network.fc(batch().image.flatten(1))))


@pytest.mark.parametrize("taps", [(), ("norm", "head")])
def test_a_frozen_teacher_does_not_drift(taps):
    """Not when the module that trains its student is put into train mode, and not after many batches."""
    network = trained()
    teacher = Frozen(Tapped(network, taps))
    before = digest(network)
    module = distiller(Normed(), teacher)
    for seed in range(20):
        module.train()
        teacher(batch(seed))
    assert digest(network) == before
    assert not any(part.training for part in network.modules())


def test_a_teacher_gets_no_gradient():
    network = trained()
    output = Frozen(Tapped(network))(batch())
    assert not output.logits.requires_grad
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = batch().image.requires_grad_()
    assert not Frozen(Tapped(network))(batch()._replace(image=image)).logits.requires_grad


def test_a_teacher_is_no_part_of_its_student():
    """Its weights are neither in the student's checkpoint nor in the optimiser."""
    student, network = Normed(), trained()
    module = distiller(student, Frozen(Tapped(network)))
    assert list(module.state_dict()) == [f"student.network.{name}" for name in student.state_dict()]
    owned = {id(parameter) for parameter in module.parameters()}
    assert owned == {id(parameter) for parameter in student.parameters()}
    assert Frozen(Tapped(network)).state_dict() == {}


def test_a_teacher_that_was_put_into_train_mode_is_noticed():
    teacher = Frozen(Tapped(trained()))
    teacher.network.train()
    with pytest.raises(AssertionError, match="eval mode"):
        teacher(batch())


def test_a_teacher_moves():
    teacher = Frozen(Tapped(trained()))
    assert teacher.to(torch.device("meta")) is teacher
    assert teacher(Batch(*(part.to("meta") for part in batch()))).logits.device.type == "meta"


def test_no_teacher():
    teacher = NoTeacher()
    assert teacher(batch()) is None
    assert list(teacher.networks) == []
    assert teacher.to(torch.device("cpu")) is teacher


# --- an ensemble ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5])
def test_an_ensemble_averages_probabilities(size):
    members = [trained() for _ in range(size)]
    found = Ensemble([Tapped(member) for member in members])(batch()).logits
    outputs = [member(batch().image).double().tolist() for member in members]  # in eval mode by now
    for image in range(len(found)):
        for label in range(CLASSES):
            shares = []
            for output in outputs:
                exponentials = [math.exp(logit) for logit in output[image]]
                shares.append(exponentials[label] / sum(exponentials))
            assert found[image, label].item() == pytest.approx(math.log(sum(shares) / size), abs=1e-5)


def test_an_ensemble_that_is_sure_stays_finite():
    class Sure(nn.Module):
        def forward(self, image):
            return torch.tensor([[1e4, 0.0, -1e4]]).expand(len(image), -1)

    logits = Ensemble([Tapped(Sure()), Tapped(Sure())])(batch()).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[0], torch.tensor([0.0, -1e4, -2e4]))


def test_the_members_of_an_ensemble_do_not_drift():
    members = [trained() for _ in range(2)]
    teacher = Ensemble([Tapped(member) for member in members])
    before = [digest(member) for member in members]
    for seed in range(5):
        assert not teacher(batch(seed)).logits.requires_grad
    assert [digest(member) for member in members] == before
    assert len(teacher.networks) == 2


# --- a moving average -------------------------------------------------------------------------------------------------


def floats(network):
    return {name: value.double().clone() for name, value in network.state_dict().items() if value.is_floating_point()}


def randomise(network):
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn_like(value))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("updates", [0, 1, 4])
def test_ema_is_the_closed_form(decay, updates):
    """d^k w_0 + (1 - d) sum_i d^(k - i) w_i, of weights and batch-norm statistics alike."""
    network = trained()
    student, teacher = Tapped(network), Ema(decay)
    teacher.start(student)
    history = [floats(network)]
    for _ in range(updates):
        randomise(network)
        teacher.update(student)
        history.append(floats(network))
    found = floats(teacher.single())
    assert "norm.running_mean" in found
    for name, value in found.items():
        expected = decay**updates * history[0][name]
        for number in range(1, updates + 1):
            expected = expected + (1 - decay) * decay ** (updates - number) * history[number][name]
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)


def test_ema_starts_as_the_student_and_is_not_it():
    network = trained()
    teacher = Ema(0.9)
    teacher.start(Tapped(network))
    first = teacher(batch()).logits
    randomise(network)
    assert torch.equal(teacher(batch()).logits, first)
    assert not any(parameter.requires_grad for parameter in teacher.single().parameters())
    assert not any(part.training for part in teacher.single().modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.training


def test_the_taps_of_an_ema_are_of_the_averaged_network():
    network = trained()
    teacher = Ema(1.0)
    teacher.start(Tapped(network, ["fc"]))
    expected = network.fc(batch().image.flatten(1)).detach()
    randomise(network)
    assert torch.equal(teacher(batch()).taps["fc"], expected)


def test_an_ema_goes_on_from_a_checkpoint():
    network = trained()
    teacher = Ema(0.5)
    teacher.start(Tapped(network))
    randomise(network)
    teacher.update(Tapped(network))
    resumed = Ema(0.5)
    resumed.start(Tapped(Normed()))
    resumed.load_state_dict(teacher.state_dict())
    randomise(network)
    for one in (teacher, resumed):
        one.update(Tapped(network))
    assert digest(teacher.single()) == digest(resumed.single())


@pytest.mark.parametrize("decay", [-0.1, 1.1, "slow", True, math.nan])
def test_a_bad_decay(decay):
    with pytest.raises(ConfigError, match=r"`teacher\.decay` to be a number in \[0, 1\]"):
        Ema(decay)


# --- a teacher made by hand -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correct", [0.3, 0.9, 0.99])
def test_virtual(correct):
    given = batch(images=7)
    teacher = Virtual(CLASSES, correct)
    probabilities = teacher(given).logits.double().softmax(1)
    for image, label in enumerate(given.target.tolist()):
        for other in range(CLASSES):
            expected = correct if other == label else (1 - correct) / (CLASSES - 1)
            assert probabilities[image, other].item() == pytest.approx(expected, abs=1e-6)
    assert list(teacher.networks) == []


@pytest.mark.parametrize("correct", [0.25, 0.1, 1.0, 1.5, -1, "high"])
def test_virtual_refuses_a_bad_probability_at_once(correct):
    with pytest.raises(ConfigError, match="`correct_probability`"):
        Virtual(CLASSES, correct)


def test_the_average_of_a_quantised_network_is_refused():
    network = Quantized(nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES)))
    with pytest.raises(ConfigError, match="teacher=ema cannot average a quantised network"):
        Ema(0.9).start(Tapped(network))
