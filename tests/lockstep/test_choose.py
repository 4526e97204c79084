"""When students are not stacked, and what is said then."""

import functools

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from kd.lockstep import choose as module
from kd.lockstep import mlp
from kd.lockstep.choose import Choice, cannot_stack, choose
from kd.lockstep.ways import Learner, draws
from kd.losses.hard import HardTarget
from kd.losses.objective import Objective
from kd.nets.mlp import MLP
from kd.optim import with_max_norm
from kd.taps import Tapped
from kd.types import Batch

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
BATCH = Batch(IMAGES, torch.arange(12) % 10, torch.arange(12))
SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Counting(nn.Module):
    """Looks at its own numbers, which is beyond vmap."""

    def __init__(self):
        super().__init__()
        self.network = MLP(num_classes=10, image_shape=[1, 8, 8], hidden=[6])
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, image):
        self.step.add_(1)
        return self.network(image) * (2 if int(self.step) > 1 else 1)


def learners(make_optimizer=SGD, network=None, count=3):
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        student = Tapped(network() if network else MLP(num_classes=10, image_shape=[1, 8, 8], hidden=[6], dropout=0.3))
        objective = Objective({"ce": HardTarget()}, {"ce": 1.0 + seed})
        rule = functools.partial(LambdaLR, lr_lambda=lambda step: 1 / (1 + step))
        made.append(Learner(student, objective, make_optimizer, rule, kind="same", clip=None))
    for learner in made:
        learner.draws = draws(torch.device("cpu"))  # those of a group have one seed
    return made


def snapshot(some):
    content = [
        (one.student.state_dict(), one.optimizer.state_dict(), one.schedule.state_dict(), one.sums.totals)
        for one in some
    ]
    return repr(content), draws(torch.device("cpu"))[0].tolist()


def test_a_trial_takes_both_times_and_leaves_nothing():
    some = learners()
    before = snapshot(some)
    choice = choose(some, BATCH, None)
    assert not choice.reason
    assert choice.way == min(choice.seconds, key=choice.seconds.get)
    assert snapshot(some) == before


def test_the_faster_way_is_taken(monkeypatch):
    for fast, slow in (("stacked", "looped"), ("looped", "stacked")):
        timed = {fast: 0.001, slow: 0.002}
        monkeypatch.setattr(module, "_times", lambda trials, timed=timed: {one.way: timed[one.way] for one in trials})
        assert choose(learners(), BATCH, None).way == fast
    assert Choice("looped", {"stacked": 0.0118, "looped": 0.0031}).describe() == (
        "looped (stacked: 11.8 ms, looped: 3.1 ms a step)"
    )


def test_what_vmap_cannot_do_is_looped_and_said():
    choice = choose(learners(network=Counting), BATCH, None)
    assert choice.way == "looped"
    assert "stacking them is not possible: RuntimeError: vmap" in choice.describe()


def test_gradients_that_differ_are_noticed(monkeypatch):
    original = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda *given: original(*given) * 1.01)
    choice = choose(learners(), BATCH, None)
    assert choice.way == "looped"
    assert "it gives other gradients" in choice.describe()


@pytest.mark.parametrize(
    "make_optimizer",
    [
        functools.partial(with_max_norm, optimizer=SGD, max_norm=1.0),  # its hook takes the first dimension for units
        functools.partial(torch.optim.Adafactor, lr=0.1),  # normalises by rows and columns
        lambda parameters: torch.optim.SGD([{"params": [one]} for one in parameters], lr=0.1),
    ],
)
def test_an_optimiser_that_looks_at_whole_parameters_is_not_stacked(make_optimizer):
    assert "does not treat every number of a parameter alike" in cannot_stack(learners(make_optimizer))
    assert choose(learners(make_optimizer), BATCH, None, "stacked").way == "looped"
    assert not cannot_stack(learners())


def test_only_what_can_be_stacked_is():
    odd = learners(functools.partial(with_max_norm, optimizer=SGD, max_norm=1.0), count=1)
    other = learners(count=1)
    other[0].kind = "other"
    alike = learners()
    made = module.make("stacked", [*odd, *alike, *other])
    assert [(way.name, way.learners) for way in made] == [("stacked", alike), ("looped", [*odd, *other])]
    assert [way.name for way in module.make("looped", alike)] == ["looped"]
