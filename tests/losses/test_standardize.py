"""Logit standardisation against its equation, written out in loops."""

import math

import pytest
import torch

from kd.errors import ConfigError
from kd.losses.kd import kd_loss
from kd.losses.standardize import StandardizedKD, standardize, standardized_kd_loss
from tests.losses.logit_checks import (
    TEMPERATURE,
    LogitChecks,
    a_batch,
    bad_temperatures,
    example,
    outputs,
    tempered_divergence,
)


def z_scores(row, eps=1e-7):
    mean = sum(row) / len(row)
    variance = 0.0
    for value in row:
        variance += (value - mean) ** 2 / (len(row) - 1)
    return [(value - mean) / (eps + math.sqrt(variance)) for value in row]


class TestStandardizedKD(LogitChecks):
    learning_rate = 2.0

    @staticmethod
    def loss(student, teacher, _target):
        return standardized_kd_loss(student, teacher, temperature=1.5)

    @staticmethod
    def oracle(student, teacher, _target):
        return tempered_divergence([z_scores(row) for row in student], [z_scores(row) for row in teacher], 1.5)


def test_scores_have_mean_zero_and_unbiased_deviation_one():
    student, _, _ = example()
    scores = standardize(student)
    expected = [z_scores(row) for row in student.tolist()]
    torch.testing.assert_close(scores, torch.tensor(expected).double())
    torch.testing.assert_close(scores.std(dim=1), torch.ones(len(scores)).double(), rtol=1e-6, atol=0)


def test_eps_is_added_to_the_deviation():
    student, _, _ = example()
    expected = [z_scores(row, eps=0.5) for row in student.tolist()]
    torch.testing.assert_close(standardize(student, eps=0.5), torch.tensor(expected).double())


@pytest.mark.parametrize("constant", [0.0, -3.0, 1e4])
def test_constant_row_becomes_zeros(constant):
    row = torch.full((1, 4), constant, requires_grad=True)
    scores = standardize(row)
    scores.square().sum().backward()
    assert torch.equal(scores, torch.zeros(1, 4))
    assert torch.equal(row.grad, torch.zeros(1, 4))


def test_gradient_of_a_constant_row_is_that_of_centring():
    row = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    standardize(row, eps=0.1)[0, 0].backward()
    torch.testing.assert_close(row.grad, torch.tensor([[7.5, -2.5, -2.5, -2.5]]).double())


def test_scale_and_shift_of_either_side_do_not_matter():
    student, teacher, _ = example()
    value = standardized_kd_loss(student, teacher)
    torch.testing.assert_close(standardized_kd_loss(7 * student + 3, 0.2 * teacher - 1), value, rtol=1e-5, atol=0)


def test_a_student_with_the_teachers_relations_is_at_the_minimum():
    _, teacher, _ = example()
    assert standardized_kd_loss(0.1 * teacher, teacher).item() == pytest.approx(0.0, abs=1e-9)


def test_published_temperature():
    student, teacher, _ = example()
    expected = kd_loss(standardize(student), standardize(teacher), temperature=2.0)
    torch.testing.assert_close(standardized_kd_loss(student, teacher), expected)


@bad_temperatures
def test_bad_temperature(bad):
    student, teacher, _ = example()
    with pytest.raises(ConfigError, match=TEMPERATURE):
        standardized_kd_loss(student, teacher, temperature=bad)
    with pytest.raises(ConfigError, match=TEMPERATURE):
        StandardizedKD(temperature=bad)


def test_bad_eps_and_shape():
    student, _, _ = example()
    with pytest.raises(ConfigError, match="Expected `eps` to be a number above 0, but got 0"):
        standardize(student, eps=0)
    with pytest.raises(ConfigError, match=r"Expected logits \(batch, classes\), but got \(6,\)"):
        standardize(student[0])


def test_term():
    student, teacher, target = example()
    term = StandardizedKD(temperature=3.0)
    value = term(*outputs(student, teacher), a_batch(target))
    torch.testing.assert_close(value, standardized_kd_loss(student, teacher, temperature=3.0))
    assert term.needs_teacher
    with pytest.raises(ConfigError, match="none was given"):
        term(outputs(student, teacher)[0], None, a_batch(target))
