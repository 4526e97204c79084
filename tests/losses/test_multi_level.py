"""Multi-level logit distillation against its equation, written out in loops."""

import pytest
import torch

from kd.errors import ConfigError
from kd.losses.kd import kd_loss
from kd.losses.multi_level import MultiLevel, multi_level_loss
from tests.losses.logit_checks import LogitChecks, a_batch, example, outputs, softmax, tempered_divergence


def gram_difference(a, b):
    """Squared Frobenius norm of the difference of the Gram matrices of two lists of vectors."""
    total = 0.0
    for i in range(len(a)):
        for j in range(len(a)):
            ours = sum(x * y for x, y in zip(a[i], a[j], strict=True))
            theirs = sum(x * y for x, y in zip(b[i], b[j], strict=True))
            total += (ours - theirs) ** 2
    return total


def multi_level_oracle(student, teacher, temperatures):
    total = 0.0
    for temperature in temperatures:
        p_s, p_t = [softmax(row, temperature) for row in student], [softmax(row, temperature) for row in teacher]
        columns_s, columns_t = list(zip(*p_s, strict=True)), list(zip(*p_t, strict=True))
        total += tempered_divergence(student, teacher, temperature)
        total += gram_difference(p_s, p_t) / len(p_s)
        total += gram_difference(columns_s, columns_t) / len(columns_s)
    return total


class TestMultiLevel(LogitChecks):
    learning_rate = 0.1

    @staticmethod
    def loss(student, teacher, _target):
        return multi_level_loss(student, teacher, temperatures=[1.0, 3.0])

    @staticmethod
    def oracle(student, teacher, _target):
        return multi_level_oracle(student, teacher, [1.0, 3.0])


def test_published_temperatures():
    student, teacher, _ = example()
    expected = multi_level_oracle(student.tolist(), teacher.tolist(), [2.0, 3.0, 4.0, 5.0, 6.0])
    assert multi_level_loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_temperatures_are_added_up():
    student, teacher, _ = example()
    parts = [multi_level_loss(student, teacher, temperatures=[t]) for t in (2.0, 5.0)]
    torch.testing.assert_close(multi_level_loss(student, teacher, temperatures=(2.0, 5.0)), parts[0] + parts[1])


def test_gram_matrices_see_what_lies_between_images():
    """Two sure images of one class or of two: the teacher's Gram matrices are known by hand."""
    same, apart = torch.tensor([[50.0, 0.0], [50.0, 0.0]]), torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    value = multi_level_loss(same.double(), apart.double(), temperatures=[1.0])
    divergence = kd_loss(same.double(), apart.double(), temperature=1.0)
    # images: [[1, 1], [1, 1]] against the identity, 2 / B; classes: diag(2, 0) against the identity, 2 / C
    assert (value - divergence).item() == pytest.approx(2.0)


@pytest.mark.parametrize("bad", [[], "hot", 4.0, None])
def test_temperatures_that_are_no_list(bad):
    student, teacher, _ = example()
    with pytest.raises(ConfigError, match=r"`temperatures` to list at least one temperature, but got"):
        multi_level_loss(student, teacher, temperatures=bad)
    with pytest.raises(ConfigError, match=r"`temperatures` to list at least one temperature, but got"):
        MultiLevel(temperatures=bad)


@pytest.mark.parametrize("bad", [0, -1.0, "hot", None])
def test_a_bad_temperature(bad):
    with pytest.raises(ConfigError, match=r"`temperatures\[1\]` to be a number above 0, but got"):
        MultiLevel(temperatures=[2.0, bad])


def test_term():
    student, teacher, target = example()
    term = MultiLevel(temperatures=[2, 3.5])
    value = term(*outputs(student, teacher), a_batch(target))
    torch.testing.assert_close(value, multi_level_loss(student, teacher, temperatures=(2.0, 3.5)))
    assert "T = 2, 3.5" in term.symbol
    with pytest.raises(ConfigError, match="none was given"):
        term(outputs(student, teacher)[0], None, a_batch(target))
