"""PKT against its equation in loops over pairs of rows."""

import math

import pytest
import torch
from feature_checks import FeatureLossChecks, dot, drawn, drawn_features, flat, step, unit_row
from hypothesis import given

from kd.errors import ConfigError
from kd.losses.pkt import PKT, pkt_loss


def neighbours(rows):
    directions = [unit_row(flat(row)) for row in rows]
    kernel = [[(dot(x, y) + 1) / 2 for y in directions] for x in directions]
    return [[value / sum(row) for value in row] for row in kernel]


def pkt_oracle(student, teacher, eps=1e-7):
    q, p = neighbours(student), neighbours(teacher)
    total = 0.0
    for q_row, p_row in zip(q, p, strict=True):
        for q_ij, p_ij in zip(q_row, p_row, strict=True):
            total += max(p_ij, 0.0) * math.log((max(p_ij, 0.0) + eps) / (max(q_ij, 0.0) + eps))
    return total / len(student) ** 2


class TestPKT(FeatureLossChecks):
    student_shape, teacher_shape = (5, 3), (5, 4)
    loss, oracle = staticmethod(pkt_loss), staticmethod(pkt_oracle)
    rest = 1e-7  # of the size of eps


@drawn
@given(drawn_features(None))
def test_any_features(features):
    # opposite rows have a probability of 0 up to rounding, of which the loss takes the logarithm after adding eps
    for eps in (1e-7, 0.1):
        expected = pkt_oracle(*[feature.tolist() for feature in features], eps)
        assert pkt_loss(*features, eps=eps).item() == pytest.approx(expected, abs=1e-9)


def test_lengths_and_rotation_change_nothing():
    student, teacher = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    rotation = torch.linalg.qr(torch.randn(3, 3).double()).Q
    lengths = torch.tensor([0.1, 1.0, 2.0, 30.0, 400.0]).double().unsqueeze(1)
    torch.testing.assert_close(pkt_loss(lengths * student @ rotation, teacher), pkt_loss(student, teacher))
    assert abs(pkt_loss(lengths * teacher @ rotation, teacher).item()) < 1e-12


def test_opposite_rows_keep_the_gradient_finite():
    student = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [3.0, 2.0, 1.0]], requires_grad=True)
    value = pkt_loss(student, torch.randn(3, 2))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("eps", [0, -1e-7, math.nan, "small"])
def test_eps_out_of_range_is_refused(eps):
    with pytest.raises(ConfigError, match=r"`eps` .*above 0"):
        PKT(eps=eps)
    with pytest.raises(ConfigError, match=r"`eps` .*above 0"):
        pkt_loss(torch.ones(2, 2), torch.ones(2, 2), eps=eps)


def test_term_reads_the_embeddings():
    value, taps = step(PKT(), {"stage": (3, 4, 4), "pool": (6,)}, {"last": (9,)})
    assert value > 0
    assert taps["stage"].grad is None
    assert taps["pool"].grad.abs().max() > 0
