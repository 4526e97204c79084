"""Every loss on logits against its equation, written out here in loops over Python floats."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.losses.hard import HardTarget, hard_target_loss
from kd.losses.kd import KD, kd_loss
from kd.losses.mixed_target import MixedTarget, mixed_target_loss
from kd.losses.virtual import VirtualTeacher, virtual_teacher_logits, virtual_teacher_loss
from kd.types import Batch, Output

B, C = 4, 6
DTYPES = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-12}

# --- the oracles ------------------------------------------------------------------------------------------------------


def log_softmax(row, temperature):
    scaled = [value / temperature for value in row]
    top = max(scaled)
    total = 0.0
    for value in scaled:
        total += math.exp(value - top)
    return [value - top - math.log(total) for value in scaled]


def smoothed_label(label, classes, smoothing):
    return [smoothing / classes + (1 - smoothing if c == label else 0.0) for c in range(classes)]


def cross_entropy(q, log_p):
    return -sum(q_c * log_p_c for q_c, log_p_c in zip(q, log_p, strict=True))


def hard_oracle(student, _teacher, target, smoothing=0.0):
    total = 0.0
    for z, y in zip(student, target, strict=True):
        total += cross_entropy(smoothed_label(y, len(z), smoothing), log_softmax(z, 1.0))
    return total / len(student)


def kd_oracle(student, teacher, _target, temperature):
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        log_s, log_t = log_softmax(z_s, temperature), log_softmax(z_t, temperature)
        for c in range(len(z_s)):
            total += math.exp(log_t[c]) * (log_t[c] - log_s[c])
    return temperature**2 * total / len(student)


def mixed_oracle(student, teacher, target, temperature, alpha):
    total = 0.0
    for z_s, z_t, y in zip(student, teacher, target, strict=True):
        soft = [math.exp(value) for value in log_softmax(z_t, temperature)]
        q = [alpha * p + (1 - alpha) * (1.0 if c == y else 0.0) for c, p in enumerate(soft)]
        total += cross_entropy(q, log_softmax(z_s, temperature))
    return total / len(student)


def virtual_oracle(student, _teacher, target, temperature, correct):
    total = 0.0
    for z, y in zip(student, target, strict=True):
        powers = [(correct if c == y else (1 - correct) / (len(z) - 1)) ** (1 / temperature) for c in range(len(z))]
        log_s = log_softmax(z, temperature)
        for c, power in enumerate(powers):
            p = power / sum(powers)
            total += p * (math.log(p) - log_s[c])
    return temperature**2 * total / len(student)


# Every loss as a function of (student, teacher, target), beside its oracle.
CASES = {
    "hard": (lambda s, _t, y: hard_target_loss(s, y), hard_oracle),
    "smoothed": (lambda s, _t, y: hard_target_loss(s, y, label_smoothing=0.1), partial(hard_oracle, smoothing=0.1)),
    "kd": (lambda s, t, _y: kd_loss(s, t, temperature=3.0), partial(kd_oracle, temperature=3.0)),
    "mixed": (
        lambda s, t, y: mixed_target_loss(s, t, y, temperature=2.0, alpha=0.3),
        partial(mixed_oracle, temperature=2.0, alpha=0.3),
    ),
    "virtual": (
        lambda s, _t, y: virtual_teacher_loss(s, y, temperature=20.0, correct_probability=0.95),
        partial(virtual_oracle, temperature=20.0, correct=0.95),
    ),
}
every_loss = pytest.mark.parametrize("name", CASES)
with_teacher = pytest.mark.parametrize("name", ["kd", "mixed"])


def example(dtype=torch.float64, *, batch=B, classes=C, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (batch,), generator=generator)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), target


def oracle_value(name, student, teacher, target):
    return CASES[name][1](student.tolist(), teacher.tolist(), target.tolist())


# --- what holds for every loss ----------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_result_type(name, dtype):
    student, teacher, target = example(dtype)
    value = CASES[name][0](student, teacher, target)
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # the oracle is given the rounded logits, so that half precision costs no more than float32
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert value.item() == pytest.approx(oracle_value(name, student, teacher, target), rel=tolerance, abs=tolerance)


@every_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_has_the_type_of_the_logits(name, dtype):
    student, teacher, target = example(dtype)
    CASES[name][0](student, teacher, target).backward()
    exact = student.detach().double().requires_grad_()
    CASES[name][0](exact, teacher.double(), target).backward()
    assert student.grad.dtype == dtype
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@every_loss
def test_float32_inside_autocast(name):
    student, teacher, target = example(torch.float32)
    weight = torch.eye(C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, low_teacher = student @ weight, teacher @ weight
        value = CASES[name][0](low, low_teacher, target)
        wide = CASES[name][0](student, teacher, target)
    assert low.dtype == torch.bfloat16
    assert value.dtype == wide.dtype == torch.float32
    assert value.item() == pytest.approx(oracle_value(name, low, low_teacher, target), rel=1e-5)
    assert wide.item() == pytest.approx(oracle_value(name, student, teacher, target), rel=1e-5)


@every_loss
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_logits_keep_value_and_gradient_finite(name, dtype):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [1e4] * 3], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, -1e4, 1e4], [0.0, -1e4, -1e4]], dtype=dtype)
    value = CASES[name][0](student, teacher, torch.tensor([1, 0, 2]))
    value.backward()
    assert math.isfinite(value.item())
    assert torch.isfinite(student.grad).all()
    assert value.item() == pytest.approx(oracle_value(name, student, teacher, torch.tensor([1, 0, 2])), rel=2e-3)


@every_loss
def test_gradient_agrees_with_finite_differences(name):
    student, teacher, target = example(batch=3, classes=4)
    assert torch.autograd.gradcheck(lambda s: CASES[name][0](s, teacher, target), (student,))


@every_loss
def test_order_of_the_batch_does_not_matter(name):
    student, teacher, target = example()
    order = torch.tensor([2, 0, 3, 1])
    value = CASES[name][0](student, teacher, target)
    torch.testing.assert_close(CASES[name][0](student[order], teacher[order], target[order]), value)


@with_teacher
def test_teacher_gets_no_gradient(name):
    student, teacher, target = example()
    teacher.requires_grad_()
    CASES[name][0](student, teacher, target).backward()
    assert teacher.grad is None
    assert student.grad is not None


@every_loss
def test_arguments_stay_as_they_were(name):
    student, teacher, target = example()
    before = student.detach().clone(), teacher.clone(), target.clone()
    CASES[name][0](student, teacher, target).backward()
    assert all(torch.equal(now, then) for now, then in zip((student, teacher, target), before, strict=True))


@every_loss
def test_twenty_steps_lower_the_loss(name):
    student, teacher, target = example(torch.float32)
    optimizer = torch.optim.SGD([student], lr=0.5)
    values = []
    for _ in range(20):
        value = CASES[name][0](student, teacher, target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(later < earlier for earlier, later in pairwise(values))


@st.composite
def drawn_logits(draw):
    batch, classes = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    row = st.lists(st.floats(-50, 50), min_size=classes, max_size=classes)
    rows = st.lists(row, min_size=batch, max_size=batch)
    labels = st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch)
    return torch.tensor(draw(rows)).double(), torch.tensor(draw(rows)).double(), torch.tensor(draw(labels))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    logits=drawn_logits(),
    temperature=st.floats(0.5, 40),
    alpha=st.floats(0, 1),
    smoothing=st.floats(0, 1),
    correct=st.floats(0.55, 0.999),
)
def test_any_logits_and_hyper_parameters(logits, temperature, alpha, smoothing, correct):
    student, teacher, target = logits
    rows = student.tolist(), teacher.tolist(), target.tolist()
    pairs = [
        (hard_target_loss(student, target, label_smoothing=smoothing), hard_oracle(*rows, smoothing)),
        (kd_loss(student, teacher, temperature=temperature), kd_oracle(*rows, temperature)),
        (
            mixed_target_loss(student, teacher, target, temperature=temperature, alpha=alpha),
            mixed_oracle(*rows, temperature, alpha),
        ),
        (
            virtual_teacher_loss(student, target, temperature=temperature, correct_probability=correct),
            virtual_oracle(*rows, temperature, correct),
        ),
    ]
    for value, expected in pairs:
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert value.item() > -1e-9


# --- what holds for one of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_gradient_in_closed_form(temperature):
    student, teacher, _ = example()
    kd_loss(student, teacher, temperature=temperature).backward()
    for z_s, z_t, gradient in zip(student.tolist(), teacher.tolist(), student.grad.tolist(), strict=True):
        log_s, log_t = log_softmax(z_s, temperature), log_softmax(z_t, temperature)
        expected = [(math.exp(s) - math.exp(t)) * temperature / B for s, t in zip(log_s, log_t, strict=True)]
        assert gradient == pytest.approx(expected, rel=1e-10, abs=1e-14)


def test_kd_gradient_keeps_its_size_as_the_temperature_grows():
    """For large T it is the difference of the centred logits over B C (Hinton et al. 2015, equation 4)."""
    student, teacher, _ = example()
    kd_loss(student, teacher, temperature=1e5).backward()
    difference = (student - teacher).detach()
    expected = (difference - difference.mean(dim=1, keepdim=True)) / (B * C)
    torch.testing.assert_close(student.grad, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kd_is_zero_for_a_student_equal_to_its_teacher(temperature):
    _, teacher, _ = example()
    student = (teacher + 7.0).requires_grad_()  # a shift of all logits changes no probability
    value = kd_loss(student, teacher, temperature=temperature)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-12)


def test_kd_is_not_averaged_over_the_classes():
    student, teacher, _ = example()
    log_s, log_t = F.log_softmax(student / 3, dim=1), F.log_softmax(teacher / 3, dim=1)
    element_mean = F.kl_div(log_s, log_t.exp(), reduction="none").mean()
    torch.testing.assert_close(kd_loss(student, teacher, temperature=3.0), 9.0 * C * element_mean)


def test_mixed_target_without_teacher_is_tempered_cross_entropy():
    student, teacher, target = example()
    value = mixed_target_loss(student, teacher, target, temperature=3.0, alpha=0.0)
    torch.testing.assert_close(value, F.cross_entropy(student / 3.0, target))


def test_mixed_target_without_label_is_soft_cross_entropy():
    """It has the gradient of kd without T^2, and exceeds it by the teacher's entropy."""
    student, teacher, target = example()
    value = mixed_target_loss(student, teacher, target, temperature=3.0, alpha=1.0)
    p = F.softmax(teacher / 3.0, dim=1)
    entropy = -(p * p.log()).sum(dim=1).mean()
    torch.testing.assert_close(value, kd_loss(student, teacher, temperature=3.0) / 9.0 + entropy)


def test_label_smoothing_spreads_over_all_classes():
    """The label keeps 1 - e + e / C: with e = 1 every class has 1 / C."""
    student, _, target = example()
    uniform = -F.log_softmax(student, dim=1).mean()
    torch.testing.assert_close(hard_target_loss(student, target, label_smoothing=1.0), uniform)


@pytest.mark.parametrize("classes", [2, 10])
def test_virtual_teacher_probabilities(classes):
    probabilities = virtual_teacher_logits(
        torch.tensor([1, 0]), num_classes=classes, correct_probability=0.9, dtype=torch.float64
    ).exp()
    rest = 0.1 / (classes - 1)
    expected = torch.full((2, classes), rest, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = 0.9
    torch.testing.assert_close(probabilities, expected)


def test_virtual_teacher_is_kd_from_its_logits():
    student, _, target = example()
    teacher = virtual_teacher_logits(target, num_classes=C, correct_probability=0.97, dtype=torch.float64)
    value = virtual_teacher_loss(student, target, temperature=20.0, correct_probability=0.97)
    torch.testing.assert_close(value, kd_loss(student, teacher, temperature=20.0))


def test_virtual_teacher_is_softened_as_a_distribution():
    """At T = 20 the label of ten classes gets 0.135; probabilities taken as logits would give 0.105."""
    logits = virtual_teacher_logits(torch.tensor([3]), num_classes=10)
    assert F.softmax(logits / 20, dim=1)[0, 3].item() == pytest.approx(0.13498, abs=1e-5)


# --- wrong arguments --------------------------------------------------------------------------------------------------


TEMPERATURE = "Expected `temperature` to be a number above 0, but got"
SHARE = r"to be a number in \[0, 1\], but got"


@pytest.mark.parametrize("bad", [0, -1.0, math.inf, math.nan, "hot", True, None])
def test_bad_temperature(bad):
    student, teacher, target = example()
    with pytest.raises(ConfigError, match=TEMPERATURE):
        kd_loss(student, teacher, temperature=bad)
    with pytest.raises(ConfigError, match=TEMPERATURE):
        mixed_target_loss(student, teacher, target, temperature=bad)
    with pytest.raises(ConfigError, match=TEMPERATURE):
        virtual_teacher_loss(student, target, temperature=bad)
    for term in (KD, MixedTarget, VirtualTeacher):
        with pytest.raises(ConfigError, match=TEMPERATURE):
            term(temperature=bad)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, "half"])
def test_bad_shares(bad):
    student, teacher, target = example()
    with pytest.raises(ConfigError, match=f"`alpha` {SHARE}"):
        mixed_target_loss(student, teacher, target, alpha=bad)
    with pytest.raises(ConfigError, match=f"`alpha` {SHARE}"):
        MixedTarget(alpha=bad)
    with pytest.raises(ConfigError, match=f"`label_smoothing` {SHARE}"):
        hard_target_loss(student, target, label_smoothing=bad)
    with pytest.raises(ConfigError, match=f"`label_smoothing` {SHARE}"):
        HardTarget(label_smoothing=bad)


@pytest.mark.parametrize("bad", [0.0, 0.1, 1 / 6, 1.0])
def test_virtual_teacher_must_be_right_but_not_certain(bad):
    student, _, target = example()
    with pytest.raises(ConfigError, match=r"`correct_probability` to be above 0\.166667 and below 1, but got"):
        virtual_teacher_loss(student, target, correct_probability=bad)


@pytest.mark.parametrize("bad", [0.0, 1.0, 2.0, "sure"])
def test_bad_correct_probability_is_found_before_the_first_batch(bad):
    with pytest.raises(ConfigError, match="`correct_probability` to be"):
        VirtualTeacher(correct_probability=bad)


def test_virtual_teacher_needs_two_classes():
    with pytest.raises(ConfigError, match="`num_classes` to be a whole number of at least 2"):
        virtual_teacher_logits(torch.tensor([0]), num_classes=1)


@with_teacher
def test_student_and_teacher_of_different_shapes(name):
    student, teacher, target = example()
    with pytest.raises(ConfigError, match=r"student \(4, 6\) and teacher \(4, 5\)"):
        CASES[name][0](student, teacher[:, :5], target)
    with pytest.raises(ConfigError, match=r"student \(4, 6, 1\) and teacher \(4, 6, 1\)"):
        CASES[name][0](student[..., None], teacher[..., None], target)


@pytest.mark.parametrize("name", ["hard", "mixed", "virtual"])
def test_target_of_a_wrong_shape_or_type(name):
    student, teacher, target = example()
    with pytest.raises(ConfigError, match=r"logits \(4, 6\) and target \(3,\)"):
        CASES[name][0](student, teacher, target[:3])
    with pytest.raises(ConfigError, match=r"class numbers, but got values of type torch.float32"):
        CASES[name][0](student, teacher, target.float())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("name", ["hard", "mixed", "virtual"])
def test_target_of_any_integer_type(name, dtype):
    student, teacher, target = example()
    value = CASES[name][0](student, teacher, target)
    torch.testing.assert_close(CASES[name][0](student, teacher, target.to(dtype)), value)


# --- the terms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "name", "symbol", "needs_teacher"),
    [
        (HardTarget(), "hard", "CE", False),
        (HardTarget(label_smoothing=0.1), "smoothed", "CE(smoothing 0.1)", False),
        (KD(temperature=3.0), "kd", "T^2 KL", True),
        (MixedTarget(temperature=2.0, alpha=0.3), "mixed", "CE(mixed target, alpha 0.3)", True),
        (VirtualTeacher(temperature=20.0, correct_probability=0.95), "virtual", "T^2 KL(virtual)", False),
    ],
    ids=str,
)
def test_terms_call_their_functions(term, name, symbol, needs_teacher):
    student, teacher, target = example()
    batch = Batch(torch.zeros(B, 1, 2, 2), target, torch.arange(B))
    value = term(Output(student, {}), Output(teacher, {}) if needs_teacher else None, batch)
    assert value.item() == pytest.approx(oracle_value(name, student, teacher, target), rel=1e-10)
    assert term.symbol == symbol
    assert term.needs_teacher is needs_teacher
    assert not list(term.parameters())


@pytest.mark.parametrize("term", [KD(), MixedTarget()], ids=str)
def test_terms_that_miss_their_teacher(term):
    student, _, target = example()
    with pytest.raises(ConfigError, match="learns from a teacher, but none was given"):
        term(Output(student, {}), None, Batch(torch.zeros(B, 1, 2, 2), target, torch.arange(B)))
