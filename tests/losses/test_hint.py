"""FitNets' hints against the mean of squares, in loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kd.errors import ConfigError
from kd.losses.hint import Hint, hint_loss
from kd.losses.term import Setting
from kd.types import Batch, Output


def oracle(student, teacher):
    total, count = 0.0, 0
    for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        total += (a - b) ** 2
        count += 1
    return total / count


def example(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *shape, generator=generator, dtype=dtype)
    return student.requires_grad_(), teacher


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_value_and_gradient(shape, seed):
    student, teacher = example(*shape, seed=seed)
    value = hint_loss(student, teacher)
    assert value.item() == pytest.approx(oracle(student, teacher), rel=1e-12)
    value.backward()
    expected = [2 * (a - b) / student.numel() for a, b in zip(student.flatten(), teacher.flatten(), strict=True)]
    torch.testing.assert_close(student.grad.flatten(), torch.stack(expected).detach())


def test_stages_add_up():
    pairs = [example(3, 4), example(3, 2, 5, 5, seed=1)]
    value = hint_loss([s for s, _ in pairs], [t for _, t in pairs])
    assert value.item() == pytest.approx(sum(oracle(s, t) for s, t in pairs), rel=1e-12)


def test_agreement_is_the_minimum_and_the_teacher_gets_no_gradient():
    student, teacher = example(4, 3)
    teacher.requires_grad_()
    assert hint_loss(teacher, teacher).item() == 0
    hint_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("fill", [0.0, 1e4, -1e4])
def test_extremes_stay_finite(batch, fill):
    student = torch.full((batch, 2, 3, 3), fill, requires_grad=True)
    value = hint_loss(student, -student.detach())
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_float32_inside_autocast():
    student, teacher = example(4, 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = student @ torch.eye(8)
        value = hint_loss(low, teacher)
    assert low.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(oracle(low.double(), teacher.double()), rel=1e-6)


@pytest.mark.parametrize(("student", "teacher"), [((2, 3), (2, 4)), ((2, 3, 4, 4), (2, 3))])
def test_shapes_must_agree(student, teacher):
    with pytest.raises(ConfigError, match=r"one shape.*\(2, 3"):
        hint_loss(torch.zeros(student), torch.zeros(teacher))


def test_counts_must_agree():
    with pytest.raises(ConfigError, match="1 and 2"):
        hint_loss([torch.zeros(2, 3)], [torch.zeros(2, 3)] * 2)


# --- the term ---------------------------------------------------------------------------------------------------------

SHAPES = {"vector": ((5,), (7,)), "smaller": ((4, 8, 8), (6, 4, 4)), "larger": ((4, 4, 4), (6, 8, 8))}


def outputs(kind, batch=4):
    made = []
    for shape in SHAPES[kind]:
        taps = {"a": torch.randn(batch, *shape), "b": torch.randn(batch, *shape), "c": torch.randn(batch, *shape)}
        made.append(Output(torch.randn(batch, 3), taps))
    return made


def built(kind, roles=("a", "b", "c"), **kwargs):
    term = Hint(**kwargs)
    term.resolve({"stages": roles}, {"stages": roles})
    student, teacher = outputs(kind, batch=2)
    term.build(Setting(student, teacher, nn.Identity(), nn.Identity(), 3))
    return term


BATCH = Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4))


@pytest.mark.parametrize("kind", SHAPES)
def test_term_trains_its_regressor(kind):
    term = built(kind)
    student, teacher = outputs(kind)
    assert term.student_layers == ("b",)
    assert [name for name, _ in term.named_children()] == ["regressors"]
    expected = oracle(term.regressors[0](student.taps["b"]).double(), teacher.taps["b"].double())
    assert term(student, teacher, BATCH).item() == pytest.approx(expected, rel=1e-5)

    optimizer = torch.optim.SGD(term.parameters(), lr=0.1)
    values = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = term(student, teacher, BATCH)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < values[0]


def test_term_with_several_layers_has_a_regressor_for_each():
    term = built("smaller", student="stages", teacher=["b", "c"])
    assert term.student_layers == ("b", "c")
    assert len(term.regressors) == 2
    assert term(*outputs("smaller"), BATCH).isfinite()


def test_term_needs_a_teacher_with_layers():
    term = built("vector")
    student, _ = outputs("vector")
    with pytest.raises(ConfigError, match="gives only logits"):
        term(student, Output(student.logits, {}), BATCH)
