"""VID against its equation in loops over every element."""

import math

import pytest
import torch
from feature_checks import FeatureLossChecks, drawn, drawn_features, flat, step
from hypothesis import given
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.losses.vid import VID, vid_loss

RHO = [-1.0, 0.5, 3.0]


def vid_oracle(student, teacher, variances=None):
    terms = []
    for ours, theirs in zip(student, teacher, strict=True):
        for channel in range(len(ours)):
            s2 = variances[channel] if variances else 5.0
            for mu, target in zip(flat([ours[channel]]), flat([theirs[channel]]), strict=True):
                terms.append(0.5 * ((mu - target) ** 2 / s2 + math.log(s2)))
    return sum(terms) / len(terms)


def variances(rho, eps=1e-5):
    return [math.log1p(math.exp(value)) + eps for value in rho]


class VIDChecks(FeatureLossChecks):
    learning_rate = 0.2
    constant = math.log(5.0) / 2

    def test_agreement_is_the_minimum(self):
        student, teacher = self.example()
        same = student.detach().clone().requires_grad_()
        value = self.loss(same, same.detach())
        value.backward()
        assert value.item() == pytest.approx(self.constant)
        assert self.loss(student, teacher) > value
        assert same.grad.abs().max() == 0


class TestInitialVariance(VIDChecks):
    student_shape = teacher_shape = (2, 3, 2, 2)
    loss, oracle = staticmethod(vid_loss), staticmethod(vid_oracle)


class TestVectors(VIDChecks):
    student_shape = teacher_shape = (4, 3)
    constant = sum(math.log(s2) for s2 in variances(RHO)) / 6
    loss = staticmethod(lambda s, t: vid_loss(s, t, torch.tensor(RHO, dtype=torch.float64).to(s.dtype)))
    oracle = staticmethod(lambda s, t: vid_oracle(s, t, variances(RHO)))


@drawn
@given(drawn_features("same", "same", "same", most=3), st.lists(st.floats(-20, 20), min_size=3, max_size=3))
def test_any_features_and_variances(features, rho):
    rho = rho[: features[0].shape[1]]
    expected = vid_oracle(*[feature.tolist() for feature in features], variances(rho, 1e-3))
    value = vid_loss(*features, torch.tensor(rho, dtype=torch.float64), eps=1e-3)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_gradient_of_the_variance():
    student, teacher = torch.randn(2, 3, 2, 2).double(), torch.randn(2, 3, 2, 2).double()
    rho = torch.tensor(RHO, dtype=torch.float64).requires_grad_()
    vid_loss(student, teacher, rho).backward()
    for channel in range(3):
        values = []
        for move in (1e-5, -1e-5):
            moved = [value + move * (place == channel) for place, value in enumerate(RHO)]
            values.append(vid_oracle(student.tolist(), teacher.tolist(), variances(moved)))
        assert rho.grad[channel].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_the_best_variance_is_the_mean_square():
    student, teacher = torch.randn(64, 3).double(), torch.randn(64, 3).double()
    square = (student - teacher).square().mean(0)
    rho = torch.log(torch.expm1(square - 1e-5)).requires_grad_()
    vid_loss(student, teacher, rho).backward()
    assert rho.grad.abs().max() < 1e-12


@pytest.mark.parametrize("raw", [-1e4, 1e4])
def test_extreme_variances_keep_value_and_gradient_finite(raw):
    student, rho = torch.randn(2, 3, requires_grad=True), torch.full((3,), raw, requires_grad=True)
    value = vid_loss(student, torch.randn(2, 3), rho)
    value.backward()
    assert all(torch.isfinite(tensor).all() for tensor in (value, student.grad, rho.grad))


def test_stages_are_summed():
    ours, theirs = [torch.randn(2, 3, 4, 4), torch.randn(2, 5)], [torch.randn(2, 3, 4, 4), torch.randn(2, 5)]
    rho = [torch.randn(3), torch.randn(5)]
    expected = sum(vid_loss(*stage) for stage in zip(ours, theirs, rho, strict=True))
    torch.testing.assert_close(vid_loss(ours, theirs, rho), expected)
    torch.testing.assert_close(vid_loss(ours, theirs), vid_loss(ours[0], theirs[0]) + vid_loss(ours[1], theirs[1]))


def test_what_does_not_fit_is_refused():
    student, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    with pytest.raises(ConfigError, match=r"one shape.*\(2, 3, 2, 2\).*\(2, 3, 1, 2\)"):
        vid_loss(student, teacher[:, :, :1])
    with pytest.raises(ConfigError, match=r"`rho` .*\(3,\).*\(2,\)"):
        vid_loss(student, teacher, torch.zeros(2))
    for rho in (torch.zeros(3), [torch.zeros(3)]):
        with pytest.raises(ConfigError, match="each of 2 features, but got 1"):
            vid_loss([student, student], [teacher, teacher], rho)
    with pytest.raises(ConfigError, match=r"`eps` .*above 0"):
        vid_loss(student, teacher, eps=0.0)
    for variance in (0.0, 1e-5, -1.0, "five"):
        with pytest.raises(ConfigError, match=f"`initial_variance` .*{variance!r}"):
            VID(initial_variance=variance)


@pytest.mark.parametrize("variance", [1e-3, 1.0, 5.0, 2000.0])
def test_term_trains_its_predictors_and_variances(variance):
    term = VID(initial_variance=variance)
    value, taps = step(
        term, {"a": (3, 8, 8), "b": (5, 2, 2), "c": (6,)}, {"x": (4, 9, 9), "y": (5, 4, 4), "z": (8,)}, batch=4
    )
    assert torch.isfinite(value)
    assert all(feature.grad.abs().max() > 0 for feature in taps.values())
    assert all(p.grad.abs().max() > 0 for p in term.parameters())
    assert [tuple(rho.shape) for rho in term.rho] == [(4,), (5,), (8,)]
    for rho in term.rho:
        torch.testing.assert_close(torch.nn.functional.softplus(rho) + 1e-5, torch.full_like(rho, variance))
    assert len(list(term.parameters())) == 3 * 3 + 3
