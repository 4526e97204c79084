"""Factor transfer against normalised differences in loops, and its two stages."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kd.errors import ConfigError
from kd.losses.factor import FactorTransfer, Paraphrase, factor_transfer_loss, paraphraser_loss
from kd.losses.objective import Objective
from kd.losses.term import Setting
from kd.types import Batch, Output


def unit(row):
    length = math.sqrt(sum(value * value for value in row))
    return [value / length for value in row]


def oracle(student, teacher, p):
    total, count = 0.0, 0
    for ours, theirs in zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True):
        for a, b in zip(unit(ours), unit(theirs), strict=True):
            total += abs(a - b) ** p
            count += 1
    return total / count


def example(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=dtype)
    return student.requires_grad_(), teacher


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=4, max_size=4), p=st.integers(1, 2), seed=st.integers(0, 1000))
def test_value_of_any_factor(shape, p, seed):
    student, teacher = example(*shape, seed=seed)
    value = factor_transfer_loss(student, teacher, p=p)
    assert value.item() == pytest.approx(oracle(student, teacher, p), rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("p", [1, 2])
def test_gradient(p):
    student, teacher = example(2, 2, 2, 1)
    [gradient] = torch.autograd.grad(factor_transfer_loss(student, teacher, p=p), student)
    step = 1e-7
    for place in range(student.numel()):
        around = []
        for sign in (1, -1):
            moved = student.detach().clone()
            moved.view(-1)[place] += sign * step
            around.append(oracle(moved, teacher, p))
        assert gradient.flatten()[place].item() == pytest.approx((around[0] - around[1]) / (2 * step), abs=1e-6)


def test_scale_does_not_matter_and_agreement_is_the_minimum():
    student, teacher = example(3, 2, 2, 2)
    teacher.requires_grad_()
    value = factor_transfer_loss(student, teacher)
    torch.testing.assert_close(factor_transfer_loss(5 * student, 0.1 * teacher), value)
    assert factor_transfer_loss(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-15)
    value.backward()
    assert teacher.grad is None


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("fill", [0.0, 1e4, -1e4])
def test_extremes_stay_finite(batch, fill):
    for p in (1, 2):
        for teacher in (0.0, 1e4):
            student = torch.full((batch, 2, 2, 2), fill, requires_grad=True)
            value = factor_transfer_loss(student, torch.full_like(student, teacher), p=p)
            value.backward()
            assert value.isfinite()
            assert student.grad.isfinite().all()
            assert student.grad.abs().max() < 1e7


def test_reconstruction_is_a_mean_of_squares():
    reconstructed, teacher = example(2, 3, 2, 2)
    teacher.requires_grad_()
    value = paraphraser_loss(reconstructed, teacher)
    pairs = zip(reconstructed.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    assert value.item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 24, rel=1e-12)
    value.backward()
    torch.testing.assert_close(reconstructed.grad, 2 * (reconstructed - teacher).detach() / 24)
    assert teacher.grad is None


def test_float32_inside_autocast():
    student, teacher = example(2, 2, 3, 3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, back = (loss(student.bfloat16(), teacher) for loss in (factor_transfer_loss, paraphraser_loss))
    assert value.dtype == back.dtype == torch.float32
    assert value.item() == pytest.approx(oracle(student.bfloat16().double(), teacher.double(), 1), rel=1e-5)


@pytest.mark.parametrize("loss", [factor_transfer_loss, paraphraser_loss])
def test_shapes_must_agree(loss):
    with pytest.raises(ConfigError, match=r"\(2, 3, 4, 4\) and teacher \(2, 3, 2, 2\)"):
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (lambda **given: factor_transfer_loss(torch.ones(1, 1), torch.ones(1, 1), **given), "p", 3),
        (FactorTransfer, "p", 0),
        (FactorTransfer, "rate", 0.0),
        (Paraphrase, "rate", -1),
    ],
)
def test_hyper_parameters_are_checked(make, name, value):
    with pytest.raises(ConfigError, match=f"`{name}`.*{value}"):
        make(**{name: value})


# --- the two stages ---------------------------------------------------------------------------------------------------

SHAPES = {"larger": ((4, 8, 8), (6, 4, 4)), "smaller": ((5, 2, 2), (6, 4, 4)), "equal": ((4, 4, 4), (6, 4, 4))}
BATCH = Batch(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64), torch.arange(4))


def outputs(kind="larger", batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [Output(torch.zeros(batch, 3), {"m": torch.rand(batch, *s, generator=generator)}) for s in SHAPES[kind]]


def built(term, kind="larger"):
    objective = Objective({"factor": term}, {"factor": 1.0})
    objective.resolve({"stages": ["x", "m"]}, {"stages": ["x", "m"]})
    objective.build(Setting(*outputs(kind, batch=2), nn.Identity(), nn.Identity(), 3))
    return objective


def train(objective, student, teacher, *features):
    objective.train()
    optimizer = torch.optim.SGD([p for p in (*objective.parameters(), *features) if p.requires_grad], lr=0.5)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = objective(student, teacher, BATCH)[0]
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def test_the_paraphraser_learns_and_is_carried_over_frozen():
    first, second = Paraphrase(), FactorTransfer()
    student, teacher = outputs()
    stage = built(first)
    assert first.teacher_layers == ("m",)
    assert first.student_layers == ()
    assert not first.needs_student
    assert first.paraphraser.encoder(teacher.taps["m"]).shape == (4, 3, 4, 4)  # half of 6 channels
    values = train(stage, student, teacher)
    assert values[-1] < values[0]

    next_stage = built(second)
    next_stage.carry_over(stage.terms.state_dict())
    before = {name: value.clone() for name, value in second.paraphraser.state_dict().items()}
    torch.testing.assert_close(before, first.paraphraser.state_dict())
    values = train(next_stage, student, teacher)
    assert values[-1] < values[0]
    assert second.translator.training
    torch.testing.assert_close(second.paraphraser.state_dict(), before)


@pytest.mark.parametrize("kind", SHAPES)
def test_transfer_of_differing_maps(kind):
    term = FactorTransfer(rate=1.5, p=2)
    built(term, kind)
    term.eval()
    student, teacher = outputs(kind)
    student.taps["m"].requires_grad_()
    teacher.taps["m"].requires_grad_()
    ours, theirs = term.translator(student.taps["m"]), term.paraphraser.encoder(teacher.taps["m"])
    assert ours.shape[1] == theirs.shape[1] == 9
    if kind == "larger":
        ours = torch.stack([ours[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2, 4, 6) for x in (0, 2, 4, 6)])
        ours, theirs = ours.permute(1, 2, 0), theirs.flatten(2)
    if kind == "smaller":
        theirs = torch.stack([theirs[:, :, y : y + 2, x : x + 2].mean((2, 3)) for y in (0, 2) for x in (0, 2)])
        ours, theirs = ours.flatten(2), theirs.permute(1, 2, 0)
    value = term(student, teacher, BATCH)
    assert value.item() == pytest.approx(oracle(ours.detach(), theirs.detach(), 2), rel=1e-4)
    value.backward()
    assert student.taps["m"].grad.abs().sum() > 0
    assert teacher.taps["m"].grad is None


def test_needs_maps():
    vector = Output(torch.zeros(2, 3), {"m": torch.zeros(2, 3)})
    for term in (Paraphrase("m"), FactorTransfer("m", "m")):
        term.resolve({}, {})
        with pytest.raises(ConfigError, match="feature maps"):
            term.build(Setting(vector, vector, nn.Identity(), nn.Identity(), 3))
