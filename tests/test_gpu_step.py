"""A training step on a GPU never waits for the device, and has no tensor elsewhere: shown on a machine without one."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loops.progress import _Progress

from kd import build, method_config
from kd.data.images import InOrder
from kd.distiller import Distiller, Sums
from kd.lockstep.choose import make
from kd.lockstep.module import Lockstep, Member
from kd.losses.hard import HardTarget
from kd.recipe import plan
from tests.commands import configured
from tests.fake_gpu import DEVICE, NeverWaits, WaitsError, backward, fake_gpu, move, moved

CONF = Path(__file__).parents[1] / "conf"
METHODS = sorted(path.stem for path in CONF.glob("method/*.yaml"))
TWO_STAGES = [name for name in METHODS if "initial" in method_config(name)]
OPTIMS = sorted(path.stem for path in CONF.glob("optim/*.yaml"))
SMALL = ("model@student=resnet8", "data.batch_size=16", "data.train_limit=64")
TEACHER = "model@teacher.model=resnet8"
#: masks change at the first three steps, which is in those that are watched
PRUNED = ("model@student=cnn3_pruned", "student.network.width=[4,4,4]", "student.ramp=3", "student.every=1")
INT8 = ("model@student=cnn3_int8", "student.network.width=[4,4,4]")


def alone(*overrides, stage="student"):
    """A student's module, as it is after the first batch, and the data and recipe; all still on the CPU."""
    has_teacher = any(override.startswith("teacher=") for override in overrides)
    config = configured(*SMALL, *(() if has_teacher else ("teacher=random", TEACHER)), *overrides)
    data = build.data(config)
    recipe = plan(config, data).student
    recipe = recipe.initial if stage == "initial" else recipe
    members = [build.network(member.model, data, "teacher") for member in recipe.teacher.members]
    teacher = build.teacher_of(recipe, members, data)
    student, objective, _ = build.student(recipe, data, teacher)
    module = Distiller(
        "student", student, teacher, objective, *build.optimizer_and_schedule(recipe),
        seed=0, gradient_clip_val=recipe.gradient_clip_val,
    )  # fmt: skip
    objective.begin_epoch(50)  # past every warm-up
    module.loss(data.on_device(next(iter(data.train_dataloader())), torch.device("cpu")))
    return module, data, recipe


def on_gpu(module):
    """Move a module and its teacher, and get ready to train as Lightning would."""
    fast = getattr(module.teacher, "_fast", None) or ()
    move(module, *module.teacher.networks, *(fast if isinstance(fast, tuple) else [fast]))
    module._device = DEVICE
    module._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module._optimizer = module.make_optimizer(module._trained)
    module._schedule = module.make_schedule(module._optimizer, 4, 10)
    module._processes, module._scaler, module._progress = 1, None, _Progress()
    module.sums["train"] = Sums()


def batches(data):
    """Batches of the training as they are made on the device; not those of its first step, which moves the order."""
    data.trainer = SimpleNamespace(training=True, current_epoch=0, strategy=SimpleNamespace(root_device=DEVICE))
    data._splits["train"] = tuple(map(moved, data._splits["train"]))
    rows = torch.empty(64, dtype=torch.int64)
    for batch in data.loader(InOrder(rows), "train", 16):
        yield data.on_device(batch, DEVICE)


def check(*overrides, stage="student"):
    """Take a step, in which what stays on the device is sent there, and two that must not wait."""
    module, data, _ = alone(*overrides, stage=stage)
    with fake_gpu():
        on_gpu(module)
        coming = batches(data)
        module.step(next(coming))
        with NeverWaits():
            for _ in range(2):
                module.step(next(coming))
        assert {value.device for value in module.sums["train"].totals.values()} == {DEVICE}
        assert any(parameter.grad is not None for parameter in module._trained)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_waits(method):
    check(f"method={method}")


@pytest.mark.parametrize("method", TWO_STAGES)
def test_no_first_stage_waits(method):
    check(f"method={method}", stage="initial")


@pytest.mark.parametrize(
    "overrides",
    [
        ("teacher=ema",),
        ("teacher=ema", "method=attention"),
        ("teacher=ema", *PRUNED),
        ("teacher=ensemble", "teacher.size=2", TEACHER),
        ("teacher=self",),
        ("teacher=trained", TEACHER),
        ("teacher=trained", "method=attention", TEACHER),
        ("teacher=trained", *(one.replace("student", "teacher.model") for one in PRUNED)),
        ("teacher=virtual",),
    ],
    ids=" ".join,
)
def test_no_teacher_waits(overrides):
    check(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        PRUNED,
        (*PRUNED, "method=attention"),
        INT8,
        (*INT8, "method=attention"),
        ("model@student=mlp_1200_dropout", "student.hidden=[8,8]", "student.input_dropout=0.1"),
        ("trainer.gradient_clip_val=1.0",),
        *((f"data.augment={name}",) for name in ("shift", "crop_flip")),
        *((f"optim={name}",) for name in OPTIMS),
    ],
    ids=" ".join,
)
def test_nothing_around_it_waits(overrides):
    check(*overrides)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_wait(monkeypatch, dtype):
    """As Lightning trains in bf16-mixed, and in 16-mixed with a scaler of the loss."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    step, scaler = Distiller.step, torch.amp.GradScaler("cuda") if dtype == torch.float16 else None

    def half(module, batch):
        module._scaler = scaler
        with torch.autocast("cuda", dtype):
            step(module, batch)

    monkeypatch.setattr(Distiller, "step", half)
    assert scaler is None or scaler.is_enabled()
    check("method=kd_rkd_attention", "trainer.gradient_clip_val=1.0")


def test_a_loaders_batches_are_sent_without_waiting():
    """As those of `kd.distill`: the step begins while its images are on their way."""
    module, _, _ = alone()
    with fake_gpu():
        on_gpu(module)
        module._trainer = SimpleNamespace(datamodule=None)
        batch = torch.empty(4, 1, 8, 8), torch.empty(4, dtype=torch.int64), torch.empty(4, dtype=torch.int64)
        module.step(module._received(batch))
        with NeverWaits(sends=True):
            received = module._received(batch)
        with NeverWaits():
            module.step(received)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by deepcopy, which copes
@pytest.mark.parametrize("way", ["looped", "stacked"])
@pytest.mark.parametrize(
    "overrides",
    [
        ("model@student=mlp_1200_dropout", "student.hidden=[8,8]", "trainer.gradient_clip_val=1.0"),
        ("trainer.gradient_clip_val=1.0",),
        ("method=attention",),
    ],
    ids=["mlp", "joint losses", "own losses"],
)
def test_no_group_of_students_waits(overrides, way):
    """An mlp has a forward pass of its own for many students, other networks go through vmap."""
    made = [alone(*overrides) for _ in range(2)]
    data, members = made[0][1], [Member(recipe, module, recipe.model, None, None) for module, _, recipe in made]
    together = Lockstep(members, members[0].module.teacher, way, lambda _: None)
    with fake_gpu():
        for member in members:
            on_gpu(member.module)
            member.begin(4)
        together._device, together._layout = DEVICE, torch.contiguous_format
        together._ways = make(way, together._learners())
        assert [one.name for one in together._ways] == [way]
        coming = batches(data)
        together.step(next(coming))
        with NeverWaits():
            for _ in range(2):
                together.step(next(coming))
        assert together._ways[0].losses.device == DEVICE


# --- that the check notices -------------------------------------------------------------------------------------------


FAULTS = {
    "item": lambda x: x * x.sum().item(),
    "bool": lambda x: x if x.sum() > 0 else -x,
    "nonzero": lambda x: x.flatten()[x.flatten().nonzero()],
    "masked select": lambda x: x.masked_select(x > 0),
    "mask": lambda x: x[x > 0],
    "mask to write to": lambda x: x.clone().index_put_((x > 0,), x[0, 0]),
    "from the device": lambda x: x.cpu(),
    "number": lambda x: x * torch.tensor(2.0),
    "number to the device": lambda x: x * torch.tensor(2.0, device=x.device),
    "elsewhere": lambda x: x * torch.ones(x.shape),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_term_that_waits_is_noticed(monkeypatch, name):
    module, data, _ = alone("method=hard")
    with fake_gpu():
        on_gpu(module)
        coming = batches(data)
        module.step(next(coming))
        monkeypatch.setattr(HardTarget, "forward", lambda _, student, *__: FAULTS[name](student.logits).sum())
        with NeverWaits(), pytest.raises(WaitsError):
            module.step(next(coming))


def test_gradients_are_those_of_autograds_own_engine():
    module, data, _ = alone("method=kd_rkd_attention", *INT8)
    batch = data.on_device(next(iter(data.train_dataloader())), torch.device("cpu"))
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    state = copy.deepcopy(module.state_dict())
    module.loss(batch)[0].backward()
    expected = [weight.grad for weight in weights]
    module.load_state_dict(state)
    module.zero_grad()
    backward(module.loss(batch)[0])
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)
