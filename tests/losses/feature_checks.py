"""What every loss on features must pass, for test classes to inherit, and what their files share."""

import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.losses.term import Setting
from kd.types import Batch, Output

DTYPES = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float32: 1e-4, torch.float64: 1e-10}
drawn = settings(max_examples=30, deadline=None, derandomize=True)


class FeatureLossChecks:
    """Checks of `loss(student, teacher)` against `oracle`, the same for nested lists of floats, written as loops."""

    student_shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]
    learning_rate = 0.05
    rest = 1e-10  #: the largest gradient where student and teacher agree

    @staticmethod
    def loss(student, teacher):
        raise NotImplementedError

    @staticmethod
    def oracle(student, teacher):
        raise NotImplementedError

    def example(self, dtype=torch.float64, *, seed=0):
        generator = torch.Generator().manual_seed(seed)
        student = torch.randn(self.student_shape, generator=generator, dtype=torch.float64)
        teacher = torch.randn(self.teacher_shape, generator=generator, dtype=torch.float64)
        return student.to(dtype).requires_grad_(), teacher.to(dtype)

    def expected(self, student, teacher):
        return self.oracle(student.tolist(), teacher.tolist())

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_value_and_result_type(self, dtype):
        student, teacher = self.example(dtype)
        value = self.loss(student, teacher)
        assert value.shape == ()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-4  # the oracle is given the rounded features
        assert value.item() == pytest.approx(self.expected(student, teacher), rel=tolerance)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_gradient_is_the_loops_slope(self, dtype):
        student, teacher = self.example(dtype)
        self.loss(student, teacher).backward()
        assert student.grad.dtype == dtype
        slopes = torch.tensor(slope(self.expected, student.detach().double(), teacher.double()), dtype=torch.float64)
        scale = slopes.abs().max().item()
        tolerance = max(DTYPES[dtype], 1e-6) * scale
        torch.testing.assert_close(student.grad.double().flatten(), slopes, rtol=0, atol=tolerance)

    def test_float32_inside_autocast(self):
        student, teacher = self.example(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low, low_teacher = student @ torch.eye(student.shape[-1]), teacher @ torch.eye(teacher.shape[-1])
            value, wide = self.loss(low, low_teacher), self.loss(student, teacher)
        assert low.dtype == torch.bfloat16
        assert value.dtype == wide.dtype == torch.float32
        assert value.item() == pytest.approx(self.expected(low, low_teacher), rel=1e-4)
        assert wide.item() == pytest.approx(self.expected(student, teacher), rel=1e-4)

    def test_teacher_gets_no_gradient(self):
        student, teacher = self.example()
        teacher.requires_grad_()
        self.loss(student, teacher).backward()
        assert teacher.grad is None
        assert student.grad.abs().max() > 0

    def test_arguments_stay_as_they_were(self):
        student, teacher = self.example()
        before = student.detach().clone(), teacher.clone()
        self.loss(student, teacher).backward()
        assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])

    def test_order_of_the_batch_does_not_matter(self):
        student, teacher = self.example()
        order = torch.randperm(len(student), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(self.loss(student[order], teacher[order]), self.loss(student, teacher))

    def test_agreement_is_the_minimum(self):
        student, teacher = self.example()
        assert self.loss(student, teacher) > 1e-8
        same = student.detach().clone().requires_grad_()
        value = self.loss(same, same.detach())
        value.backward()
        assert abs(value.item()) < 1e-12
        assert same.grad.abs().max() < self.rest

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("batch", [1, 2, 3])
    @pytest.mark.parametrize("ours", ["zero", "repeated", "huge", "plain"])
    def test_extremes_keep_value_and_gradient_finite(self, ours, batch, dtype):
        for theirs in ("zero", "repeated", "huge", "plain"):
            self.check_extreme((ours, theirs), batch, dtype)

    def check_extreme(self, kinds, batch, dtype):
        student, teacher = (
            extreme(kind, (batch, *feature.shape[1:])).to(dtype)
            for kind, feature in zip(kinds, self.example(), strict=True)
        )
        student.requires_grad_()
        value = self.loss(student, teacher)
        value.backward()
        assert math.isfinite(value.item())
        # half precision cannot hold the gradient of every loss of features of 1e4
        assert torch.isfinite(student.grad).all() or (dtype == torch.float16 and "huge" in kinds)
        if dtype == torch.float64:
            assert value.item() == pytest.approx(self.expected(student, teacher), rel=1e-8, abs=1e-12)

    def test_not_a_number_is_not_hidden(self):
        student, teacher = self.example()
        broken = student.detach().clone()
        broken[0] = math.nan
        assert self.loss(broken, teacher).isnan()

    def test_twenty_steps_lower_the_loss(self):
        student, teacher = self.example(torch.float32)
        optimizer = torch.optim.Adam([student], lr=self.learning_rate)
        first = self.loss(student, teacher).item()
        for _ in range(20):
            optimizer.zero_grad()
            self.loss(student, teacher).backward()
            optimizer.step()
        assert self.loss(student, teacher).item() < 0.9 * first

    def test_batches_of_other_length_are_refused(self):
        student, teacher = self.example()
        with pytest.raises(ConfigError, match=r"student \(.*teacher \("):
            self.loss(student, teacher[1:])


def slope(function, student, teacher, step=1e-5):
    """Return the finite differences of `function` in every element of the student's feature."""
    slopes = []
    for place in range(student.numel()):
        moved = [student.clone(), student.clone()]
        moved[0].view(-1)[place] += step
        moved[1].view(-1)[place] -= step
        slopes.append((function(moved[0], teacher) - function(moved[1], teacher)) / (2 * step))
    return slopes


def extreme(kind, shape):
    if kind == "zero":
        return torch.zeros(shape, dtype=torch.float64)
    plain = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if kind == "huge":
        return 1e4 * plain.sign()
    return plain[:1].expand(shape).clone() if kind == "repeated" else plain


@st.composite
def drawn_features(draw, *sizes, most=4):
    """Two features of one batch, of halves, so that zeros and repeated rows are frequent and exact.

    `sizes` are the dimensions after the batch: None draws one for each side, "same" draws one for both, a number is it.
    """
    batch, student, teacher = draw(st.integers(1, 4)), [], []
    for size in sizes:
        ours = size if isinstance(size, int) else draw(st.integers(1, most))
        student.append(ours)
        teacher.append(draw(st.integers(1, most)) if size is None else ours)
    return tuple(
        torch.tensor(draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n))).double().div(2).view(shape)
        for shape in ([batch, *student], [batch, *teacher])
        for n in [math.prod(shape)]
    )


def setting(student, teacher, **others):
    """Return the setting of two networks with these taps for two blank images: shapes by name, without the batch."""
    networks = (
        Output(torch.zeros(2, 10), {k: torch.zeros(2, *v) for k, v in taps.items()}) for taps in (student, teacher)
    )
    blank = torch.nn.Identity()
    return Setting(*networks, blank, blank, num_classes=10, **others)


def step(term, student_shapes, teacher_shapes, *, batch=3):
    """Resolve and build a term, run it forward and backward on random features; return value and student's taps."""
    names = {"stages": list(student_shapes), "embedding": [*student_shapes][-1]}
    theirs = {"stages": list(teacher_shapes), "embedding": [*teacher_shapes][-1]}
    term.resolve(names, theirs)
    term.build(setting(student_shapes, teacher_shapes))
    ours = {name: torch.randn(batch, *shape, requires_grad=True) for name, shape in student_shapes.items()}
    teacher = {name: torch.randn(batch, *shape) for name, shape in teacher_shapes.items()}
    images = Batch(torch.zeros(batch, 1), torch.zeros(batch).long(), torch.arange(batch))
    value = term(Output(torch.zeros(batch, 10), ours), Output(torch.zeros(batch, 10), teacher), images)
    value.backward()
    return value, ours


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def unit_row(x):
    length = math.sqrt(dot(x, x))
    return [a / length for a in x] if length > 0 else [0.0 for _ in x]


def flat(nested):
    return [value for part in nested for value in flat(part)] if isinstance(nested, list) else [nested]


def average_pooled(plane, height, width):
    """A plane (rows of floats), average-pooled by whole factors, in loops."""
    tall, wide = len(plane) // height, len(plane[0]) // width
    return [
        [
            sum(plane[y * tall + i][x * wide + j] for i in range(tall) for j in range(wide)) / (tall * wide)
            for x in range(width)
        ]
        for y in range(height)
    ]
