"""What holds for every method of conf/method, in each of its stages; a new file enrols itself."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from kd import method_config
from kd.build import complete, wrapped_around
from kd.losses.configure import build_objective, first_stage
from kd.taps import Tapped
from kd.teachers import Frozen
from kd.types import Batch, Output

METHODS = sorted(path.stem for path in Path(__file__).parents[2].glob("conf/method/*.yaml"))
STAGES = [(name, "main") for name in METHODS]
STAGES += [(name, "initial") for name in METHODS if "initial" in method_config(name)]
IMAGES, CLASSES = 12, 5
ROLES = {
    "stages": ["stage1.relu", "stage2.relu"],
    "preactivations": ["stage1.norm", "stage2.norm"],
    "embedding": "flatten",
    "classifier": "fc",
}


class Net(nn.Module):
    """Two stages whose widths and sizes differ between student (stride 1) and teacher (stride 2)."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stage1 = self.stage(1, width, stride)
        self.stage2 = self.stage(width, 2 * width, 2)
        self.fc = nn.Linear(2 * width, CLASSES)

    @staticmethod
    def stage(channels: int, width: int, stride: int) -> nn.Sequential:
        stage = nn.Sequential()
        stage.add_module("conv", nn.Conv2d(channels, width, 3, stride, padding=1))
        stage.add_module("norm", nn.BatchNorm2d(width))
        stage.add_module("relu", nn.ReLU())
        return stage

    def forward(self, image):
        return self.fc(self.stage2(self.stage1(image)).mean((2, 3)).flatten(1))


class Arm:
    """A student and its objective, built as a run builds them."""

    def __init__(self, name: str, stage: str) -> None:
        torch.manual_seed(0)
        config = method_config(name)
        config = first_stage(config) if stage == "initial" else config
        self.objective = build_objective(config, ROLES, ROLES)
        self.teacher = Frozen(Tapped(Net(6, 2), self.objective.layers("teacher")))
        self.student = Tapped(Net(4, 1), self.objective.layers("student"))
        facts = {
            "num_classes": CLASSES,
            "student_roles": ROLES,
            "teacher_roles": ROLES,
            "transfer_set": lambda: (torch.arange(40), torch.arange(40) % CLASSES),
            "new_peer": lambda: Net(6, 2),
        }
        network = self.student.network
        self.student, _ = complete(
            self.objective, self.student, self.teacher, torch.zeros(2, 1, 8, 8), {},
            lambda model: wrapped_around(network, model), **facts,
        )  # fmt: skip
        self.objective.begin_epoch(50)  # past every warm-up

    def trained(self) -> list[nn.Parameter]:
        return [p for p in (*self.student.parameters(), *self.objective.parameters()) if p.requires_grad]

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.objective(self.student(batch.image), self.teacher(batch), batch)[0]


@pytest.fixture(params=STAGES, ids="-".join)
def arm(request):
    return Arm(*request.param)


def batch(images: int = IMAGES, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES - 1, (images,), generator=generator)  # the last class is absent
    return Batch(torch.randn(images, 1, 8, 8, generator=generator), target, torch.arange(images))


def test_training_lowers_it(arm):
    images = batch()
    optimizer = torch.optim.Adam(arm.trained(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = arm.loss(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.isfinite(parameter).all() for parameter in arm.trained())


def test_everything_that_trains_is_an_optimisers_parameter(arm):
    arm.loss(batch()).backward()
    assert any(parameter.grad is not None for parameter in arm.trained())
    assert all(parameter.grad is None for parameter in arm.teacher.network.parameters())
    frozen = [p for p in (*arm.student.parameters(), *arm.objective.parameters()) if not p.requires_grad]
    assert all(parameter.grad is None for parameter in frozen)


def test_no_gradient_reaches_the_teachers_outputs(arm):
    images = batch()
    output = arm.teacher(images)
    taught = Output(output.logits.requires_grad_(), {n: tap.requires_grad_() for n, tap in output.taps.items()})
    arm.objective(arm.student(images.image), taught, images)[0].backward()
    assert taught.logits.grad is None
    assert all(tap.grad is None for tap in taught.taps.values())


@pytest.mark.parametrize("images", [2, 3])
def test_small_batches_have_finite_gradients(arm, images):
    loss = arm.loss(batch(images))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in arm.trained() if p.grad is not None)


def test_equal_images_have_finite_gradients(arm):
    images = batch(4)
    loss = arm.loss(images._replace(image=images.image[:1].expand(4, -1, -1, -1).contiguous()))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in arm.trained() if p.grad is not None)


def test_its_state_is_all_that_a_checkpoint_needs(request):
    for name, stage in STAGES:
        one, other = Arm(name, stage), Arm(name, stage)
        optimizer = torch.optim.SGD(one.trained(), lr=1e-2)
        one.loss(batch()).backward()
        optimizer.step()
        other.student.load_state_dict(copy.deepcopy(one.student.state_dict()))
        other.objective.load_state_dict(copy.deepcopy(one.objective.state_dict()))
        for _ in range(2):  # the second step sees what the first one left in a memory
            values = [arm.loss(batch(seed=1)) for arm in (one, other)]
            assert values[0].equal(values[1]), name


def test_no_weight_of_the_teacher_is_in_its_state(arm):
    teachers = list(arm.teacher.network.state_dict().values())
    kept = [value for value in arm.objective.state_dict().values() if value.ndim > 1]
    assert not any(value.shape == other.shape and value.equal(other) for value in kept for other in teachers)


def test_half_precision_outside_does_not_change_it_much(arm):
    arm.student.eval(), arm.objective.eval()
    images = batch()
    student, teacher = arm.student(images.image), arm.teacher(images)
    exact = arm.objective(student, teacher, images)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = arm.objective(student, teacher, images)[0]
    assert inside.dtype == torch.float32
    # regressors and heads do run in half precision, which is all that differs
    assert inside.item() == pytest.approx(exact.item(), rel=0.05, abs=1e-3)
