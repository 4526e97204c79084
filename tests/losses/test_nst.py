"""NST against its equation in loops over pairs of channels."""

import pytest
import torch
from feature_checks import FeatureLossChecks, average_pooled, dot, drawn, drawn_features, flat, step, unit_row
from hypothesis import given

from kd.errors import ConfigError
from kd.losses.nst import NST, nst_loss


def mean_kernel(channels, others):
    total = 0.0
    for x in channels:
        for y in others:
            total += dot(x, y) ** 2
    return total / (len(channels) * len(others))


def nst_oracle(student, teacher):
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        height, width = min(len(ours[0]), len(theirs[0])), min(len(ours[0][0]), len(theirs[0][0]))
        s, t = ([unit_row(flat(average_pooled(c, height, width))) for c in maps] for maps in (ours, theirs))
        total += mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)
    return total / len(student)


class TestFewPixels(FeatureLossChecks):
    student_shape, teacher_shape = (3, 3, 2, 2), (3, 4, 2, 2)
    loss, oracle = staticmethod(nst_loss), staticmethod(nst_oracle)


class TestManyPixels(FeatureLossChecks):
    student_shape, teacher_shape = (2, 2, 3, 4), (2, 3, 3, 4)
    loss, oracle = staticmethod(nst_loss), staticmethod(nst_oracle)


class TestLargerStudent(FeatureLossChecks):
    student_shape, teacher_shape = (2, 3, 4, 4), (2, 2, 2, 2)
    loss, oracle = staticmethod(nst_loss), staticmethod(nst_oracle)


class TestLargerTeacher(FeatureLossChecks):
    student_shape, teacher_shape = (2, 3, 2, 1), (2, 2, 4, 2)
    loss, oracle = staticmethod(nst_loss), staticmethod(nst_oracle)


@drawn
@given(drawn_features(None, "same", "same", most=3))
def test_any_features(features):
    expected = nst_oracle(*[feature.tolist() for feature in features])
    value = nst_loss(*features).item()
    assert value == pytest.approx(expected, abs=1e-12)
    assert value > -1e-12


@pytest.mark.parametrize("size", [1, 5])
def test_scale_sign_and_order_of_channels_change_nothing(size):
    student, teacher = torch.randn(2, 3, size, size).double(), torch.randn(2, 2, size, size).double()
    scaled = student * torch.tensor([0.1, -1.0, 300.0]).double().view(3, 1, 1)
    torch.testing.assert_close(nst_loss(scaled[:, [2, 0, 1]], teacher), nst_loss(student, teacher))


def test_repeating_all_channels_changes_nothing():
    student, teacher = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 2, 4, 4).double()
    torch.testing.assert_close(nst_loss(student.repeat(1, 5, 1, 1), teacher), nst_loss(student, teacher))


def test_layers_are_summed():
    ours, theirs = (
        [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)],
        [torch.randn(2, 2, 4, 4), torch.randn(2, 4, 3, 3)],
    )
    expected = sum(nst_loss(s, t) for s, t in zip(ours, theirs, strict=True))
    torch.testing.assert_close(nst_loss(ours, theirs), expected)
    with pytest.raises(ConfigError, match="2 and 1"):
        nst_loss(ours, theirs[:1])


def test_vectors_are_refused():
    with pytest.raises(ConfigError, match=r"feature maps .*student \(2, 3\)"):
        nst_loss(torch.randn(2, 3), torch.randn(2, 3))
    with pytest.raises(ConfigError, match="NST compares feature maps"):
        step(NST(), {"a": (3,)}, {"b": (3,)})


def test_term_reads_the_final_maps():
    value, taps = step(NST(), {"a": (3, 4, 4), "b": (5, 2, 2)}, {"c": (4, 8, 8), "d": (6, 3, 3)})
    assert value > 0
    assert taps["a"].grad is None
    assert taps["b"].grad.abs().max() > 0
