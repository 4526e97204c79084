"""Learning rates step by step, against formulas written down once more."""

import math

import pytest
import torch
from torch import nn

from kd.errors import ConfigError
from kd.optim import constant, cosine, multistep, one_cycle, with_max_norm

PEAK = 0.4


def optimizer(*rates, **settings):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (PEAK,)]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9, **settings)


def rates(schedule, steps_per_epoch, epochs, *peaks, **settings):
    """The learning rates of every group with which each step of a training is made."""
    stepped = optimizer(*peaks)
    scheduler = schedule(stepped, steps_per_epoch, epochs, **settings)
    found = []
    for _ in range(steps_per_epoch * epochs):
        found.append([group["lr"] for group in stepped.param_groups])
        stepped.step()
        scheduler.step()
    return found if peaks else [rate for [rate] in found]


def test_constant():
    assert rates(constant, 3, 4) == [PEAK] * 12


@pytest.mark.parametrize("steps_per_epoch, epochs", [(5, 4), (1, 1), (7, 1)])
def test_cosine(steps_per_epoch, epochs):
    total = steps_per_epoch * epochs
    expected = [PEAK * math.cos(math.pi / 2 * step / total) ** 2 for step in range(total)]  # the half-angle formula
    assert rates(cosine, steps_per_epoch, epochs) == pytest.approx(expected)


def test_cosine_after_a_warm_up():
    """2 of 5 epochs of 4 steps: eighths of the peak up to it, then half a cosine over the other 12 steps."""
    up = [PEAK * eighths / 8 for eighths in (1, 2, 3, 4, 5, 6, 7, 8)]
    down = [PEAK * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert rates(cosine, 4, 5, warmup_epochs=2) == pytest.approx(up + down)


def test_multistep():
    found = rates(multistep, 10, 10, milestones=[0.25, 0.5], gamma=0.1)
    assert found == pytest.approx([PEAK] * 25 + [PEAK * 0.1] * 25 + [PEAK * 0.01] * 50)


def test_the_milestones_of_the_distillation_tables():
    found = rates(multistep, 2, 240, milestones=[0.625, 0.75, 0.875])
    drops = [step for step in range(1, 480) if found[step] < found[step - 1] * 0.5]
    assert drops == [2 * epoch for epoch in (150, 180, 210)]


@pytest.mark.parametrize("milestone", [0.07, 0.14, 0.28, 0.29, 0.55, 0.56, 0.57, 0.58])
def test_a_rounding_error_moves_no_milestone(milestone):
    found = rates(multistep, 1, 100, milestones=[milestone])
    assert found.count(PEAK) == round(100 * milestone)


def test_without_milestones_nothing_changes():
    assert rates(multistep, 2, 3, milestones=[]) == [PEAK] * 6


@pytest.mark.parametrize("warmup", [0.3, 0.5, 0.05, 0.0, 0.99])
def test_one_cycle(warmup):
    """From a 25th of the peak up to it, down to a 10,000th of the start; both ways along half a cosine."""
    total = 40
    top = warmup * total - 1  # the step made at the peak
    low, end = PEAK / 25, PEAK / 25e4
    expected = []
    for step in range(total):
        if step <= top:
            expected.append(low + (PEAK - low) * (1 - math.cos(math.pi * step / top)) / 2)
        else:
            expected.append(end + (PEAK - end) * (1 + math.cos(math.pi * (step - top) / (total - 1 - top))) / 2)
    assert rates(one_cycle, 8, 5, warmup=warmup) == pytest.approx(expected)


@pytest.mark.parametrize("warmup", [0.1, 0.2, 0.5])
def test_one_cycle_with_a_warm_up_of_one_step(warmup):
    found = rates(one_cycle, 1, round(1 / warmup), warmup=warmup)
    assert found == sorted(found, reverse=True)
    assert PEAK / 2 < found[0] <= PEAK


@pytest.mark.parametrize(
    "schedule, settings",
    [
        (constant, {}),
        (cosine, {"warmup_epochs": 1}),
        (multistep, {"milestones": [0.5]}),
        (one_cycle, {}),
    ],
)
def test_every_group_keeps_its_share(schedule, settings):
    found = rates(schedule, 3, 4, 0.4, 0.1, **settings)
    assert all(small == pytest.approx(large / 4) for large, small in found)


@pytest.mark.parametrize(
    "schedule, settings, words",
    [
        (cosine, {"warmup_epochs": 4}, ["`optim.schedule.warmup_epochs`", "[0, 3]", "got 4"]),
        (cosine, {"warmup_epochs": -1}, ["`optim.schedule.warmup_epochs`", "-1"]),
        (cosine, {"warmup_epochs": 0.5}, ["`optim.schedule.warmup_epochs`", "0.5"]),
        (multistep, {"milestones": [0.5, 0.5]}, ["`optim.schedule.milestones`", "rise", "[0.5, 0.5]"]),
        (multistep, {"milestones": [0.8, 0.5]}, ["`optim.schedule.milestones`", "rise"]),
        (multistep, {"milestones": [150]}, ["`optim.schedule.milestones`", "above 0 and at most 1", "150"]),
        (multistep, {"milestones": [0]}, ["`optim.schedule.milestones`", "above 0"]),
        (multistep, {"milestones": [0.5], "gamma": 0}, ["`optim.schedule.gamma`", "above 0"]),
        (multistep, {"milestones": [0.5], "gamma": 2}, ["`optim.schedule.gamma`", "at most 1", "got 2"]),
        (one_cycle, {"warmup": 1.5}, ["`optim.schedule.warmup`", "[0, 1]", "1.5"]),
        (one_cycle, {"warmup": 1.0}, ["`optim.schedule.warmup`", "1.0"]),
        (one_cycle, {"warmup": "long"}, ["`optim.schedule.warmup`", "'long'"]),
    ],
)
def test_bad_values(schedule, settings, words):
    with pytest.raises(ConfigError) as error:
        schedule(optimizer(), 10, 4, **settings)
    for word in words:
        assert word in str(error.value)


# --- the weight constraint --------------------------------------------------------------------------------------------


def test_max_norm_scales_the_rows_that_a_step_made_too_long_and_no_others():
    torch.manual_seed(0)
    layer, free = nn.Linear(5, 4), nn.Linear(5, 4)
    free.load_state_dict(layer.state_dict())
    held = with_max_norm(layer.parameters(), lambda params: torch.optim.SGD(params, lr=1.0), max_norm=2.0)
    plain = torch.optim.SGD(free.parameters(), lr=1.0)
    gradient = torch.tensor([0.01, 1.0, 3.0, 0.02]).view(-1, 1)
    for network, optimizer in ((layer, held), (free, plain)):
        network.weight.grad = gradient * torch.ones_like(network.weight)
        network.bias.grad = 9 * torch.ones_like(network.bias)
        optimizer.step()
    lengths = free.weight.norm(dim=1)
    assert (lengths > 2).tolist() == [False, True, True, False]
    expected = torch.stack([row * min(1.0, 2.0 / row.norm().item()) for row in free.weight.detach()])
    torch.testing.assert_close(layer.weight.detach(), expected)
    assert torch.equal(layer.bias, free.bias), "biases are free"


def test_max_norm_must_be_above_zero():
    with pytest.raises(ConfigError, match=r"`optim.optimizer.max_norm`.*above 0, but got 0"):
        with_max_norm(nn.Linear(2, 2).parameters(), lambda params: torch.optim.SGD(params, lr=1.0), max_norm=0)
