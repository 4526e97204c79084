"""Activation boundaries against the hinge of each neuron, in loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kd.errors import ConfigError
from kd.losses.activation_boundary import ActivationBoundary, activation_boundary_loss
from kd.losses.term import Setting
from kd.types import Batch, Output


def oracle(student, teacher, margin=1.0):
    """The value, and the gradient in the student's neurons."""
    total, gradient = 0.0, []
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        slope = 0.0
        if t > 0 and s < margin:
            total += (margin - s) ** 2
            slope = -2 * (margin - s)
        if t <= 0 and s > -margin:
            total += (margin + s) ** 2
            slope = 2 * (margin + s)
        gradient.append(slope / len(student))
    return total / len(student), torch.tensor(gradient, dtype=torch.float64).reshape(student.shape)


def example(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, *shape, generator=generator, dtype=dtype)
    return student.requires_grad_(), teacher


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=4), margin=st.floats(0.1, 3.0), seed=st.integers(0, 1000))
def test_value_and_gradient(shape, margin, seed):
    student, teacher = example(*shape, seed=seed)
    value = activation_boundary_loss(student, teacher, margin=margin)
    expected, gradient = oracle(student, teacher, margin)
    assert value.item() == pytest.approx(expected, rel=1e-10)
    value.backward()
    torch.testing.assert_close(student.grad, gradient)


def test_a_teacher_of_exactly_zero_is_off():
    student = torch.tensor([[-3.0, 0.0, 1.0]])
    assert activation_boundary_loss(student, torch.zeros(1, 3)).item() == 0 + 1 + 4
    assert activation_boundary_loss(student, torch.full((1, 3), 1e-30)).item() == 16 + 1 + 0


def test_shallower_stages_count_half():
    pairs = [example(2, 3, 4, 4, seed=i) for i in range(3)]
    expected = sum(oracle(*pair)[0] * weight for pair, weight in zip(pairs, (0.25, 0.5, 1.0), strict=True))
    value = activation_boundary_loss([s for s, _ in pairs], [t for _, t in pairs])
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_only_the_teachers_signs_matter():
    student, teacher = example(4, 5)
    teacher.requires_grad_()
    value = activation_boundary_loss(student, teacher)
    torch.testing.assert_close(activation_boundary_loss(student, teacher.sign()), value)
    assert activation_boundary_loss(teacher / teacher.abs().min(), teacher).item() == 0  # the same signs, by a margin
    value.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("fill", [0.0, 1e4, -1e4])
def test_extremes_stay_finite(batch, fill):
    student = torch.full((batch, 2, 3, 3), fill, requires_grad=True)
    value = activation_boundary_loss(student, -student)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_float32_inside_autocast():
    student, teacher = example(4, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = student @ torch.eye(8)
        value = activation_boundary_loss(low, teacher)
    assert low.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(oracle(low.double(), teacher)[0], rel=1e-6)


def test_bad_arguments():
    with pytest.raises(ConfigError, match=r"\(2, 3\) and teacher \(2, 4\)"):
        activation_boundary_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match=r"`margin`.*above 0.*0"):
        activation_boundary_loss(torch.zeros(2, 3), torch.zeros(2, 3), margin=0)
    with pytest.raises(ConfigError, match=r"`margin`.*-1"):
        ActivationBoundary(margin=-1)


# --- the term ---------------------------------------------------------------------------------------------------------

STUDENT = [(4, 8, 8), (6, 4, 4), (3, 2, 2), (5,)]
TEACHER = [(7, 4, 4), (8, 4, 4), (6, 4, 4), (9,)]
BATCH = Batch(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), torch.arange(4))


def outputs(batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shapes in (STUDENT, TEACHER):
        taps = {f"p{i}": torch.randn(batch, *shape, generator=generator) for i, shape in enumerate(shapes)}
        made.append(Output(torch.zeros(batch, 3), taps))
    return made


def built():
    term = ActivationBoundary()
    term.resolve(*[{"preactivations": ["p0", "p1", "p2", "p3"]}] * 2)
    term.build(Setting(*outputs(batch=2), nn.Identity(), nn.Identity(), 3))
    return term


def halved(feature):
    means = [feature[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2, 4, 6) for x in (0, 2, 4, 6)]
    side = int(feature.shape[2] / 2)
    return torch.stack([means[4 * y + x] for y in range(side) for x in range(side)], -1).unflatten(-1, (side, side))


def test_term_connects_differing_features():
    term = built().eval()
    student, teacher = outputs()
    ours = [connector(student.taps[f"p{i}"]) for i, connector in enumerate(term.connectors)]
    theirs = [teacher.taps[f"p{i}"] for i in range(4)]
    ours[0], theirs[2] = halved(ours[0]), halved(theirs[2])
    expected = sum(oracle(a, b)[0] * 0.5 ** (3 - i) for i, (a, b) in enumerate(zip(ours, theirs, strict=True)))
    assert term(student, teacher, BATCH).item() == pytest.approx(expected, rel=1e-5)


def test_training_lowers_it():
    term = built()
    student, teacher = outputs()
    features = [tap.requires_grad_() for tap in student.taps.values()]
    optimizer = torch.optim.SGD([*term.parameters(), *features], lr=0.003)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = term(student, teacher, BATCH)
        loss.backward()
        assert all(p.grad is not None for p in (*term.parameters(), *features))
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]
