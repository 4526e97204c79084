"""The joint losses of stacked students against each student's own objective."""

import pytest
import torch

from kd.lockstep.losses import joint_losses
from kd.losses.dkd import DKD
from kd.losses.hard import HardTarget
from kd.losses.kd import KD
from kd.losses.objective import Objective
from kd.losses.schedule import WeightSchedule
from kd.types import Batch, Output

K, B, C = 4, 6, 5
TARGET = torch.tensor([0, 1, 2, 3, 4, 0])
BATCH = Batch(torch.zeros(B, 1, 2, 2), TARGET, torch.arange(B))
TEMPERATURES, WEIGHTS = (0.5, 1.0, 4.0, 20.0), (0.1, 0.5, 0.9, 1.0)


def objectives(smoothing=(0.0,) * K, weights=WEIGHTS):
    return [
        Objective({"ce": HardTarget(s), "kd": KD(t)}, {"ce": 2 - w, "kd": w})
        for s, t, w in zip(smoothing, TEMPERATURES, weights, strict=True)
    ]


def drawn(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(K, B, C, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), Output(scale * torch.randn(B, C, generator=generator, dtype=torch.float64), {})


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_terms_and_gradients_are_those_of_each_student(scale, smoothing):
    logits, teacher = drawn(scale)
    made = objectives((smoothing,) * K)
    totals, terms = joint_losses(made, logits, teacher, BATCH)
    each = [objective(Output(row, {}), teacher, BATCH) for objective, row in zip(made, logits, strict=True)]
    expected = torch.stack([total for total, _ in each])
    torch.testing.assert_close(totals, expected, check_dtype=False, rtol=1e-6, atol=1e-6)
    for name in ("ce", "kd"):
        assert not terms[name].requires_grad
        torch.testing.assert_close(terms[name], torch.stack([own[name] for _, own in each]), check_dtype=False)
    (ours,), (theirs,) = torch.autograd.grad(totals.sum(), logits), torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_what_one_student_breaks_stays_with_it():
    logits, teacher = drawn()
    with torch.no_grad():
        logits[1] = float("nan")
    totals, _ = joint_losses(objectives(), logits, teacher, BATCH)
    (gradient,) = torch.autograd.grad(totals.sum(), logits)
    assert totals.isnan().tolist() == [False, True, False, False]
    assert gradient.isnan().flatten(1).any(1).tolist() == [False, True, False, False]


def test_half_precision_is_left():
    logits, teacher = drawn()
    halves = joint_losses(objectives(), logits.detach().bfloat16(), Output(teacher.logits.bfloat16(), {}), BATCH)
    assert halves[0].dtype == torch.float32


@pytest.mark.parametrize(
    "made",
    [
        objectives(smoothing=(0.0, 0.1, 0.0, 0.0)),
        objectives(weights=(0.0, 0.5, 0.9, 1.0)),  # a term without weight must keep its NaN out of the gradient
        [*objectives()[:3], Objective({"ce": HardTarget()}, {"ce": 1.0})],
        [*objectives()[:3], Objective({"ce": HardTarget(), "kd": DKD()}, {"ce": 1.0, "kd": 1.0})],
        [Objective({"ce": HardTarget(), "dkd": DKD()}, {"ce": 1.0, "dkd": 1.0}) for _ in range(K)],
    ],
)
def test_what_has_no_joint_computation_is_left_to_each(made):
    logits, teacher = drawn()
    assert joint_losses(made, logits, teacher, BATCH) is None


def test_the_present_epoch_decides_whether_a_term_has_a_weight():
    late = [
        Objective({"ce": HardTarget(), "kd": KD()}, {"ce": 1.0, "kd": 1.0}, {"kd": WeightSchedule(start_epoch=1)})
        for _ in range(K)
    ]
    logits, teacher = drawn()
    assert joint_losses(late, logits, teacher, BATCH) is None
    for objective in late:
        objective.begin_epoch(1)
    assert joint_losses(late, logits, teacher, BATCH) is not None
