"""RKD's two losses against their equations in loops over pairs and triples of rows."""

import math

import pytest
import torch
from feature_checks import FeatureLossChecks, dot, drawn, drawn_features, flat, step, unit_row
from hypothesis import given

from kd.errors import ConfigError
from kd.losses.rkd import RKDAngle, RKDDistance, rkd_angle_loss, rkd_distance_loss
from kd.types import Output


def huber(x):
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def difference(x, y):
    return [b - a for a, b in zip(x, y, strict=True)]


def relative_distances(rows):
    distances = {}
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            distances[i, j] = math.sqrt(sum(d * d for d in difference(x, y)))
    positive = [d for d in distances.values() if d > 0]
    return {pair: d / (sum(positive) / len(positive)) if positive else 0.0 for pair, d in distances.items()}


def distance_oracle(student, teacher):
    ours, theirs = relative_distances([flat(x) for x in student]), relative_distances([flat(x) for x in teacher])
    return sum(huber(ours[pair] - theirs[pair]) for pair in ours) / len(student) ** 2


def angle(rows, i, j, k):
    return dot(unit_row(difference(rows[i], rows[j])), unit_row(difference(rows[i], rows[k])))


def angle_oracle(student, teacher):
    ours, theirs, places = [flat(x) for x in student], [flat(x) for x in teacher], range(len(student))
    triples = [(i, j, k) for i in places for j in places for k in places]
    return sum(huber(angle(ours, *t) - angle(theirs, *t)) for t in triples) / len(student) ** 3


class TestDistance(FeatureLossChecks):
    student_shape, teacher_shape = (5, 3), (5, 4)
    loss, oracle = staticmethod(rkd_distance_loss), staticmethod(distance_oracle)


class TestAngle(FeatureLossChecks):
    student_shape, teacher_shape = (4, 3), (4, 2)
    loss, oracle = staticmethod(rkd_angle_loss), staticmethod(angle_oracle)


both = pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])


@drawn
@given(drawn_features(None))
def test_any_features(features):
    rows = [feature.tolist() for feature in features]
    assert rkd_distance_loss(*features).item() == pytest.approx(distance_oracle(*rows), abs=1e-12)
    assert rkd_angle_loss(*features).item() == pytest.approx(angle_oracle(*rows), abs=1e-12)


@both
def test_moving_rotating_and_scaling_change_nothing(loss):
    student, teacher = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    rotation = torch.linalg.qr(torch.randn(3, 3).double()).Q
    torch.testing.assert_close(loss(7 * student @ rotation + 2, teacher / 3 - 1), loss(student, teacher))
    assert loss(7 * student @ rotation + 2, student).item() < 1e-12


@both
def test_a_pair_of_repeated_rows_gives_no_explosion(loss):
    student = torch.randn(6, 8)
    student[3] = student[1]
    student.requires_grad_()
    loss(student, torch.randn(6, 4)).backward()
    assert student.grad.abs().max() < 1


def test_close_rows_far_from_zero_keep_their_distances():
    exact = torch.randn(32, 3).double()  # above 25 rows, cdist by itself would multiply matrices
    moved = (exact + 1000).float()
    expected = distance_oracle(moved.tolist(), (2 * exact[:, :2]).tolist())
    assert rkd_distance_loss(moved, (2 * exact[:, :2])).item() == pytest.approx(expected, rel=1e-5)


@both
def test_maps_are_flattened(loss):
    student, teacher = torch.randn(4, 2, 3, 3), torch.randn(4, 5, 2, 2)
    torch.testing.assert_close(loss(student, teacher), loss(student.flatten(1), teacher.flatten(1)))


@pytest.mark.parametrize(("term", "loss"), [(RKDDistance, rkd_distance_loss), (RKDAngle, rkd_angle_loss)])
def test_terms_read_the_embeddings(term, loss):
    value, taps = step(term(), {"stage": (3, 4, 4), "pool": (6,)}, {"last": (9,)})
    assert value > 0
    assert taps["stage"].grad is None
    assert taps["pool"].grad.abs().max() > 0
    made = term()
    made.resolve({"embedding": "pool"}, {"embedding": "last"})
    ours, theirs = torch.randn(4, 6), torch.randn(4, 9)
    outputs = Output(ours, {"pool": ours}), Output(theirs, {"last": theirs})
    torch.testing.assert_close(made(*outputs, None), loss(ours, theirs))
    with pytest.raises(ConfigError, match=r"RKD .* reads layers of the teacher"):
        made(outputs[0], Output(theirs, {}), None)
