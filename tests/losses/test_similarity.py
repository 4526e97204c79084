"""The similarity-preserving loss against its equation in loops over pairs of images."""

import pytest
import torch
from feature_checks import FeatureLossChecks, dot, drawn, drawn_features, flat, step, unit_row
from hypothesis import given

from kd.errors import ConfigError
from kd.losses.similarity import SimilarityPreserving, similarity_preserving_loss


def similarities(features):
    rows = [flat(feature) for feature in features]
    return [unit_row([dot(x, y) for y in rows]) for x in rows]


def similarity_oracle(student, teacher):
    total = 0.0
    for ours, theirs in zip(similarities(student), similarities(teacher), strict=True):
        for s, t in zip(ours, theirs, strict=True):
            total += (s - t) ** 2
    return total / len(student) ** 2


class TestSimilarity(FeatureLossChecks):
    student_shape, teacher_shape = (4, 2, 2, 3), (4, 3, 1, 2)
    loss, oracle = staticmethod(similarity_preserving_loss), staticmethod(similarity_oracle)


@drawn
@given(drawn_features(None))
def test_any_features(features):
    expected = similarity_oracle(*[feature.tolist() for feature in features])
    assert similarity_preserving_loss(*features).item() == pytest.approx(expected, abs=1e-12)


def test_scale_and_rotation_change_nothing():
    student, teacher = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    rotation = torch.linalg.qr(torch.randn(3, 3).double()).Q
    torch.testing.assert_close(
        similarity_preserving_loss(50 * student @ rotation, teacher), similarity_preserving_loss(student, teacher)
    )
    assert similarity_preserving_loss(50 * teacher @ rotation, teacher).item() < 1e-12


def test_layers_are_summed():
    ours, theirs = [torch.randn(4, 3), torch.randn(4, 2, 5, 5)], [torch.randn(4, 2, 3, 3), torch.randn(4, 7)]
    expected = sum(similarity_preserving_loss(s, t) for s, t in zip(ours, theirs, strict=True))
    torch.testing.assert_close(similarity_preserving_loss(ours, theirs), expected)
    with pytest.raises(ConfigError, match="2 and 1"):
        similarity_preserving_loss(ours, theirs[:1])


def test_term_reads_the_final_maps():
    value, taps = step(SimilarityPreserving(), {"a": (3, 4, 4), "b": (5, 2, 2)}, {"c": (4, 8, 8), "d": (6, 3, 3)})
    assert value > 0
    assert taps["a"].grad is None
    assert taps["b"].grad.abs().max() > 0
    value, taps = step(SimilarityPreserving("stages", "stages"), {"a": (3,), "b": (5,)}, {"c": (4,), "d": (6,)})
    assert taps["a"].grad.abs().max() > 0
