"""Decoupled knowledge distillation against its equation, written out in loops."""

import math

import pytest
import torch

from kd.errors import ConfigError
from kd.losses.dkd import DKD, dkd_loss
from kd.losses.kd import kd_loss
from tests.losses.logit_checks import (
    TEMPERATURE,
    LogitChecks,
    a_batch,
    bad_temperatures,
    divergence,
    example,
    outputs,
    softmax,
)


def dkd_oracle(student, teacher, target, alpha, beta, temperature):
    total = 0.0
    for z_s, z_t, y in zip(student, teacher, target, strict=True):
        p_s, p_t = softmax(z_s, temperature)[y], softmax(z_t, temperature)[y]
        label = divergence([p_t, 1 - p_t], [p_s, 1 - p_s])
        q_s = softmax([z for c, z in enumerate(z_s) if c != y], temperature)
        q_t = softmax([z for c, z in enumerate(z_t) if c != y], temperature)
        total += alpha * label + beta * divergence(q_t, q_s)
    return temperature**2 * total / len(student)


class TestDKD(LogitChecks):
    @staticmethod
    def loss(student, teacher, target):
        return dkd_loss(student, teacher, target, alpha=0.5, beta=2.0, temperature=3.0)

    @staticmethod
    def oracle(student, teacher, target):
        return dkd_oracle(student, teacher, target, 0.5, 2.0, 3.0)


def test_published_defaults():
    student, teacher, target = example()
    expected = dkd_oracle(student.tolist(), teacher.tolist(), target.tolist(), 1.0, 8.0, 4.0)
    assert dkd_loss(student, teacher, target).item() == pytest.approx(expected, rel=1e-10)


def test_parts_make_up_the_divergence():
    """With beta = 1 - p^t_y of each image it is kd (equation 6)."""
    student, teacher, target = example()
    total = 0.0
    for i in range(len(target)):
        one = student[i : i + 1], teacher[i : i + 1], target[i : i + 1]
        rest = 1 - softmax(teacher[i].tolist(), 4.0)[int(target[i])]
        total += dkd_loss(*one, alpha=1.0, beta=rest) / len(target)
    torch.testing.assert_close(total, kd_loss(student, teacher, temperature=4.0))


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_confident_networks_have_the_exact_divergence(size):
    """Student sure of a wrong class, teacher of the label: both parts are linear in the logits."""
    student = torch.tensor([[0.0, size, 0.0]]).double()
    teacher = torch.tensor([[size, 0.0, 0.0]]).double()
    target = torch.tensor([0])
    label = dkd_loss(student, teacher, target, alpha=1.0, beta=0.0, temperature=1.0)
    assert label.item() == pytest.approx(size)
    # the teacher's other classes are equal, the student's are not: KL((1/2, 1/2) || (1, e^-size))
    others = dkd_loss(student, teacher, target, alpha=0.0, beta=1.0, temperature=1.0)
    assert others.item() == pytest.approx(size / 2 - math.log(2))


def test_two_classes_have_no_other_part():
    student, teacher, target = example(classes=2)
    assert dkd_loss(student, teacher, target, alpha=0.0).item() == pytest.approx(0.0, abs=1e-12)
    value = dkd_loss(student, teacher, target)
    torch.testing.assert_close(value, kd_loss(student, teacher, temperature=4.0))


@bad_temperatures
def test_bad_temperature(bad):
    with pytest.raises(ConfigError, match=TEMPERATURE):
        dkd_loss(*example(), temperature=bad)
    with pytest.raises(ConfigError, match=TEMPERATURE):
        DKD(temperature=bad)


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("bad", [-0.1, math.nan, "half"])
def test_bad_weights(name, bad):
    with pytest.raises(ConfigError, match=rf"`{name}` to be a number in \[0, inf\], but got {bad!r}"):
        dkd_loss(*example(), **{name: bad})
    with pytest.raises(ConfigError, match=f"`{name}` to be"):
        DKD(**{name: bad})


def test_bad_target_and_a_single_class():
    student, teacher, target = example()
    with pytest.raises(ConfigError, match=r"logits \(4, 6\) and target \(3,\)"):
        dkd_loss(student, teacher, target[:3])
    with pytest.raises(ConfigError, match="class numbers"):
        dkd_loss(student, teacher, target.double())
    with pytest.raises(ConfigError, match=r"at least 2 classes, but got \(4, 1\)"):
        dkd_loss(student[:, :1], teacher[:, :1], torch.zeros_like(target))


def test_term():
    student, teacher, target = example()
    term = DKD(alpha=2.0, beta=3.0, temperature=2.0)
    value = term(*outputs(student, teacher), a_batch(target))
    torch.testing.assert_close(value, dkd_loss(student, teacher, target, alpha=2.0, beta=3.0, temperature=2.0))
    assert term.symbol == "T^2 (2 TCKD + 3 NCKD)"
    with pytest.raises(ConfigError, match="none was given"):
        term(outputs(student, teacher)[0], None, a_batch(target))
