"""DIST against its equation, written out in loops."""

import math

import pytest
import torch

from kd.errors import ConfigError
from kd.losses.dist import DIST, dist_loss
from tests.losses.logit_checks import TEMPERATURE, LogitChecks, a_batch, bad_temperatures, example, outputs, softmax


def pearson(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    if max(a) - min(a) < 1e-12 * max(a) or max(b) - min(b) < 1e-12 * max(b):
        return 0.0
    product = squares_a = squares_b = 0.0
    for x, y in zip(a, b, strict=True):
        product += (x - mean_a) * (y - mean_b)
        squares_a += (x - mean_a) ** 2
        squares_b += (y - mean_b) ** 2
    return product / math.sqrt(squares_a * squares_b)


def dist_oracle(student, teacher, beta, gamma, temperature):
    p_s, p_t = [softmax(row, temperature) for row in student], [softmax(row, temperature) for row in teacher]
    rows, columns = len(student), len(student[0])
    inter = sum(1 - pearson(p_s[b], p_t[b]) for b in range(rows)) / rows
    intra = 0.0
    for c in range(columns):
        intra += (1 - pearson([row[c] for row in p_s], [row[c] for row in p_t])) / columns
    return temperature**2 * (beta * inter + gamma * intra)


class TestDIST(LogitChecks):
    learning_rate = 0.1

    @staticmethod
    def loss(student, teacher, _target):
        return dist_loss(student, teacher, beta=0.5, gamma=2.0, temperature=3.0)

    @staticmethod
    def oracle(student, teacher, _target):
        return dist_oracle(student, teacher, 0.5, 2.0, 3.0)


def test_published_defaults():
    student, teacher, _ = example()
    expected = dist_oracle(student.tolist(), teacher.tolist(), 1.0, 1.0, 4.0)
    assert dist_loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_rows_may_differ_by_a_positive_affine_map():
    """A student that mixes the teacher's probabilities with the uniform ones keeps every row's correlation of 1."""
    _, teacher, _ = example()
    p = torch.softmax(teacher / 4, dim=1)
    student = 4 * (0.3 * p + 0.7 / p.shape[1]).log()
    assert dist_loss(student, teacher, gamma=0.0).item() == pytest.approx(0.0, abs=1e-9)
    assert dist_loss(student, teacher, beta=0.0).item() == pytest.approx(0.0, abs=1e-9)  # one map for all rows
    opposite = 4 * (0.5 - 0.4 * p).log()  # p in [0, 1] turned around
    assert dist_loss(opposite, teacher, gamma=0.0).item() == pytest.approx(32.0)  # T^2 (1 + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_constant_rows_and_columns_have_correlation_0(dtype, beta):
    _, teacher, _ = example(dtype)
    constant = torch.full_like(teacher, 0.3).requires_grad_()
    value = dist_loss(constant, teacher, beta=beta, gamma=1.0 - beta)
    value.backward()
    assert value.item() == pytest.approx(16.0)
    assert torch.equal(constant.grad, torch.zeros_like(constant))
    repeated = teacher[:1].expand(4, -1).clone().requires_grad_()  # its columns are constant, its rows are not
    dist_loss(repeated, teacher, beta=0.0).backward()
    assert torch.equal(repeated.grad, torch.zeros_like(repeated))


def test_batch_of_one_has_no_relation_between_images():
    student, teacher, _ = example(batch=1)
    assert dist_loss(student, teacher, beta=0.0).item() == pytest.approx(16.0)


def test_a_class_improbable_in_the_whole_batch_counts_like_any_other():
    """Its column is scaled by e^-100 against float32's smallest e^-103: the correlation stays."""
    student, teacher, _ = example(torch.float32)
    moved = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -400.0])
    value = dist_loss(student + moved, teacher + moved)
    exact = dist_loss(student.double() + moved.double(), teacher.double() + moved.double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    value.backward()
    assert student.grad[:, -1].abs().max() > 1e-3


@bad_temperatures
def test_bad_temperature(bad):
    student, teacher, _ = example()
    with pytest.raises(ConfigError, match=TEMPERATURE):
        dist_loss(student, teacher, temperature=bad)
    with pytest.raises(ConfigError, match=TEMPERATURE):
        DIST(temperature=bad)


@pytest.mark.parametrize("bad", [-0.1, math.nan, "half"])
def test_bad_weights(bad):
    student, teacher, _ = example()
    for name in ("beta", "gamma"):
        with pytest.raises(ConfigError, match=rf"`{name}` to be a number in \[0, inf\], but got {bad!r}"):
            dist_loss(student, teacher, **{name: bad})
    for name in ("inter", "intra"):
        with pytest.raises(ConfigError, match=rf"`{name}` to be a number in \[0, inf\], but got {bad!r}"):
            DIST(**{name: bad})


def test_term():
    student, teacher, target = example()
    term = DIST(inter=2.0, intra=3.0, temperature=2.0)
    value = term(*outputs(student, teacher), a_batch(target))
    torch.testing.assert_close(value, dist_loss(student, teacher, beta=2.0, gamma=3.0, temperature=2.0))
    assert term.symbol == "T^2 (2 inter + 3 intra)"
    with pytest.raises(ConfigError, match="none was given"):
        term(outputs(student, teacher)[0], None, a_batch(target))
