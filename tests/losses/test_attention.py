"""Attention transfer against its equation in loops over images, pixels and channels."""

import pytest
import torch
from feature_checks import FeatureLossChecks, average_pooled, drawn, drawn_features, flat, step, unit_row
from hypothesis import given

from kd.errors import ConfigError
from kd.losses.attention import AttentionTransfer, attention_transfer_loss


def attention(channels):
    height, width = len(channels[0]), len(channels[0][0])
    return [[sum(c[y][x] ** 2 for c in channels) / len(channels) for x in range(width)] for y in range(height)]


def attention_oracle(student, teacher):
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        maps = [attention(ours), attention(theirs)]
        height, width = min(len(m) for m in maps), min(len(m[0]) for m in maps)
        ours, theirs = (unit_row(flat(average_pooled(m, height, width))) for m in maps)
        total += sum((s - t) ** 2 for s, t in zip(ours, theirs, strict=True)) / (height * width)
    return total / len(student)


class TestSameSize(FeatureLossChecks):
    student_shape, teacher_shape = (3, 2, 2, 3), (3, 4, 2, 3)
    loss, oracle = staticmethod(attention_transfer_loss), staticmethod(attention_oracle)


class TestLargerStudent(FeatureLossChecks):
    student_shape, teacher_shape = (2, 2, 4, 4), (2, 3, 2, 2)
    loss, oracle = staticmethod(attention_transfer_loss), staticmethod(attention_oracle)


class TestLargerTeacher(FeatureLossChecks):
    student_shape, teacher_shape = (2, 3, 2, 1), (2, 2, 4, 2)
    loss, oracle = staticmethod(attention_transfer_loss), staticmethod(attention_oracle)


@drawn
@given(drawn_features(None, "same", "same", most=3))
def test_any_features(features):
    expected = attention_oracle(*[feature.tolist() for feature in features])
    assert attention_transfer_loss(*features).item() == pytest.approx(expected, abs=1e-12)


def test_scale_of_an_image_and_order_of_channels_change_nothing():
    student, teacher = torch.randn(3, 4, 3, 3).double(), torch.randn(3, 2, 3, 3).double()
    scaled = student * torch.tensor([0.1, 1.0, 300.0]).double().view(3, 1, 1, 1)
    value = attention_transfer_loss(student, teacher)
    torch.testing.assert_close(attention_transfer_loss(scaled[:, [2, 0, 3, 1]], -teacher), value)


def test_stages_are_summed():
    ours, theirs = (
        [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)],
        [torch.randn(2, 2, 4, 4), torch.randn(2, 4, 3, 3)],
    )
    expected = sum(attention_transfer_loss(s, t) for s, t in zip(ours, theirs, strict=True))
    torch.testing.assert_close(attention_transfer_loss(ours, theirs), expected)
    with pytest.raises(ConfigError, match="2 and 1"):
        attention_transfer_loss(ours, theirs[:1])


def test_vectors_are_refused():
    with pytest.raises(ConfigError, match=r"feature maps .*student \(2, 3\)"):
        attention_transfer_loss(torch.randn(2, 3), torch.randn(2, 3))
    with pytest.raises(ConfigError, match="AT compares feature maps"):
        step(AttentionTransfer(), {"a": (3,)}, {"b": (3,)})


def test_term_reads_the_stages():
    value, taps = step(
        AttentionTransfer(), {"a": (3, 8, 8), "b": (5, 4, 4)}, {"x": (2, 9, 9), "c": (4, 8, 8), "d": (6, 2, 2)}
    )
    assert value > 0
    assert all(feature.grad.abs().max() > 0 for feature in taps.values())
