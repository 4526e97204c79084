"""Correlation congruence against its equation in loops over pairs of rows."""

import math
from functools import partial

import pytest
import torch
from feature_checks import FeatureLossChecks, dot, drawn, drawn_features, flat, step, unit_row
from hypothesis import given
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.losses.correlation import CorrelationCongruence, correlation_congruence_loss


def kernel(x, y, gamma, order):
    cosine = dot(unit_row(flat(x)), unit_row(flat(y)))
    return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))


def correlation_oracle(student, teacher, gamma=0.4, order=2):
    total = 0.0
    for i in range(len(student)):
        for j in range(len(student)):
            ours, theirs = (kernel(rows[i], rows[j], gamma, order) for rows in (student, teacher))
            total += (ours - theirs) ** 2
    return total / len(student) ** 2


class TestDefaults(FeatureLossChecks):
    student_shape, teacher_shape = (5, 3), (5, 4)
    loss, oracle = staticmethod(correlation_congruence_loss), staticmethod(correlation_oracle)


class TestOrderThree(FeatureLossChecks):
    student_shape, teacher_shape = (4, 3), (4, 2)
    loss = staticmethod(partial(correlation_congruence_loss, gamma=1.5, order=3))
    oracle = staticmethod(partial(correlation_oracle, gamma=1.5, order=3))


@drawn
@given(drawn_features(None), st.floats(0.01, 5), st.integers(1, 6))
def test_any_features_and_hyper_parameters(features, gamma, order):
    expected = correlation_oracle(*[feature.tolist() for feature in features], gamma, order)
    value = correlation_congruence_loss(*features, gamma=gamma, order=order)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_high_order_is_the_gaussian_kernel():
    rows = torch.nn.functional.normalize(torch.randn(5, 3).double(), dim=1)
    others = torch.nn.functional.normalize(torch.randn(5, 2).double(), dim=1)
    exact = [torch.exp(-0.7 * torch.cdist(x, x).square()) for x in (rows, others)]
    value = correlation_congruence_loss(rows, others, gamma=0.7, order=25)
    torch.testing.assert_close(value, (exact[0] - exact[1]).square().mean())


def test_lengths_and_rotation_change_nothing():
    student, teacher = torch.randn(4, 3).double(), torch.randn(4, 3).double()
    rotation = torch.linalg.qr(torch.randn(3, 3).double()).Q
    lengths = torch.tensor([0.1, 1.0, 20.0, 300.0]).double().unsqueeze(1)
    value = correlation_congruence_loss(student, teacher)
    torch.testing.assert_close(correlation_congruence_loss(lengths * student @ rotation, teacher), value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma": 0.0}, "`gamma` .*above 0"),
        ({"gamma": "wide"}, "'wide'"),
        ({"order": 0}, "`order` .*got 0"),
        ({"order": 2.5}, "2.5"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        CorrelationCongruence(**wrong)
    with pytest.raises(ConfigError, match=message):
        correlation_congruence_loss(torch.ones(2, 2), torch.ones(2, 2), **wrong)


def test_term_reads_the_embeddings():
    value, taps = step(CorrelationCongruence(), {"stage": (3, 4, 4), "pool": (6,)}, {"last": (9,)})
    assert value > 0
    assert taps["stage"].grad is None
    assert taps["pool"].grad.abs().max() > 0
