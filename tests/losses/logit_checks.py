"""What every loss on logits must hold to: subclass `LogitChecks` as a test class with the loss and its oracle.

The oracles are loops over Python floats; their gradients are finite differences.
"""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.losses.term import Setting
from kd.types import Batch, Output

B, C = 4, 6
TEMPERATURE = "Expected `temperature` to be a number above 0, but got"
bad_temperatures = pytest.mark.parametrize("bad", [0, -1.0, math.inf, math.nan, "hot", True, None])


def softmax(row, temperature):
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def tempered_divergence(student, teacher, temperature):
    """T^2 times the mean divergence of the teacher's rows from the student's."""
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        total += divergence(softmax(z_t, temperature), softmax(z_s, temperature))
    return temperature**2 * total / len(student)


def example(dtype=torch.float64, *, batch=B, classes=C, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (batch,), generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), target


def a_batch(target, size=2):
    return Batch(torch.zeros(len(target), 1, size, size), target, torch.arange(len(target)))


def outputs(student, teacher):
    return Output(student, {}), Output(teacher, {})


def a_setting(**facts):
    blank = Output(torch.zeros(2, C), {})
    return Setting(blank, None, torch.nn.Identity(), None, num_classes=C, **facts)


def difference_quotients(function, rows, step=1e-6):
    """The gradient of a function of a list of rows, by central differences."""
    gradient = [[0.0] * len(row) for row in rows]
    for i, row in enumerate(rows):
        for j in range(len(row)):
            moved = []
            for sign in (1, -1):
                other = [list(r) for r in rows]
                other[i][j] += sign * step
                moved.append(function(other))
            gradient[i][j] = (moved[0] - moved[1]) / (2 * step)
    return gradient


@st.composite
def drawn_logits(draw):
    """Logits on a grid: what is not equal differs by more than rounding."""
    batch, classes = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    row = st.lists(st.integers(-32, 32).map(lambda k: k / 4), min_size=classes, max_size=classes)
    rows = st.lists(row, min_size=batch, max_size=batch)
    labels = st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch)
    return torch.tensor(draw(rows)).double(), torch.tensor(draw(rows)).double(), torch.tensor(draw(labels))


class LogitChecks:
    learning_rate = 0.5  #: of the twenty steps

    @staticmethod
    def loss(student, teacher, target):
        raise NotImplementedError

    @staticmethod
    def oracle(student, teacher, target):
        """The loss of nested lists, from its equation."""
        raise NotImplementedError

    def expected(self, student, teacher, target):
        return self.oracle(student.tolist(), teacher.tolist(), target.tolist())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_value_and_type(self, dtype):
        student, teacher, target = example(dtype)
        value = self.loss(student, teacher, target)
        value.backward()
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        assert value.shape == ()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert student.grad.dtype == dtype
        assert value.item() == pytest.approx(self.expected(student, teacher, target), rel=tolerance)

    @pytest.mark.parametrize("batch", [1, 2, B])
    def test_gradient_is_the_oracles(self, batch):
        student, teacher, target = example(batch=batch)
        self.loss(student, teacher, target).backward()
        quotients = difference_quotients(
            lambda rows: self.oracle(rows, teacher.tolist(), target.tolist()), student.detach().tolist()
        )
        torch.testing.assert_close(student.grad, torch.tensor(quotients).double(), rtol=1e-5, atol=1e-7)

    def test_float32_inside_autocast(self):
        student, teacher, target = example(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = self.loss(student, teacher, target)
        value.backward()
        exact, wide, _ = example()
        self.loss(exact, wide, target).backward()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(self.expected(student, teacher, target), rel=1e-5)
        torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("rows", [1, 2, 5])
    def test_extreme_logits_keep_value_and_gradient_finite(self, dtype, rows):
        big, none = 1e4, [0.0, 0.0, 0.0]
        extreme = [[big, -big, 0.0], [-big, -big, big], [big] * 3, none, [0.1] * 3]
        others = [[-big, big, 0.0], [big, big, -big], none, [-big] * 3, [0.0, -big, -big]]
        target = torch.tensor([1, 0, 0, 1, 0])  # class 2 is absent
        for ours, theirs in ((extreme, others), (others, extreme), (extreme, extreme), ([none] * 5, extreme)):
            for start in (0, 5 - rows):
                student = torch.tensor(ours[start : start + rows], dtype=dtype, requires_grad=True)
                teacher = torch.tensor(theirs[start : start + rows], dtype=dtype)
                value = self.loss(student, teacher, target[start : start + rows])
                value.backward()
                assert math.isfinite(value.item())
                assert torch.isfinite(student.grad).all()

    def test_order_of_images_and_of_classes_does_not_matter(self):
        student, teacher, target = example()
        value = self.loss(student, teacher, target)
        order = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(self.loss(student[order], teacher[order], target[order]), value)
        classes = torch.tensor([3, 5, 0, 2, 1, 4])
        renamed = classes.argsort()[target]
        torch.testing.assert_close(self.loss(student[:, classes], teacher[:, classes], renamed), value)

    def test_shift_of_an_images_logits_does_not_matter(self):
        student, teacher, target = example()
        shift = torch.arange(B, dtype=torch.float64).unsqueeze(1)
        value = self.loss(student, teacher, target)
        torch.testing.assert_close(self.loss(student + shift, teacher - 2 * shift, target), value)

    def test_zero_for_a_student_equal_to_its_teacher(self):
        _, teacher, target = example()
        student = teacher.clone().requires_grad_()
        value = self.loss(student, teacher, target)
        value.backward()
        assert value.item() == pytest.approx(0.0, abs=1e-12)
        torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-12)
        assert self.loss(teacher + torch.randn_like(teacher), teacher, target) > 1e-3

    def test_teacher_gets_no_gradient_and_arguments_stay(self):
        student, teacher, target = example()
        teacher.requires_grad_()
        before = student.detach().clone(), teacher.detach().clone(), target.clone()
        self.loss(student, teacher, target).backward()
        assert teacher.grad is None
        assert all(torch.equal(now, then) for now, then in zip((student, teacher, target), before, strict=True))

    def test_twenty_steps_lower_the_loss(self):
        student, teacher, target = example(torch.float32)
        optimizer = torch.optim.SGD([student], lr=self.learning_rate)
        values = []
        for _ in range(20):
            value = self.loss(student, teacher, target)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert all(later < earlier for earlier, later in pairwise(values))

    def test_any_logits(self):
        @settings(max_examples=30, deadline=None, derandomize=True)
        @given(drawn_logits())
        def check(logits):
            value = self.loss(*logits)
            assert value.item() == pytest.approx(self.expected(*logits), rel=1e-6, abs=1e-6)
            assert value.item() > -1e-9

        check()

    def test_student_and_teacher_of_different_shapes(self):
        student, teacher, target = example()
        with pytest.raises(ConfigError, match=r"student \(4, 6\) and teacher \(4, 5\)"):
            self.loss(student, teacher[:, :5], target)
        with pytest.raises(ConfigError, match=r"student \(4, 6, 1\) and teacher \(4, 6, 1\)"):
            self.loss(student[..., None], teacher[..., None], target)
