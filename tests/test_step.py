"""The training step: as fast as it is, it trains to what the plain one trains to."""

import copy
import io

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.overhead import calls_of_kd
from kd import build
from kd.batch_loss import BatchLoss
from kd.callbacks import ShowProgress
from kd.errors import ConfigError
from kd.folder import config_hash
from kd.precision import precision
from kd.quiet import quiet
from kd.recipe import plan
from kd.schema import TrainerConfig
from kd.store import Store
from kd.taps import Tapped
from kd.teachers import Frozen
from kd.train import Trainings
from kd.types import Batch
from tests.commands import SMALL_CNNS, configured

SHORT = ("trainer.max_epochs=2", "data.train_limit=100", "data.batch_size=16", "data.augment=shift", "logger=csv")


def trained(folder, *overrides):
    """The student's weights and curves."""
    quiet()
    config = configured(*SHORT, *overrides)
    data = build.data(config)
    recipe = plan(config, data).student
    trainings = Trainings(data, Store(folder), folder / "part", config.trainer, Console(quiet=True), lambda *_: None)
    entry = trainings.obtain(recipe)
    return entry.weights(), entry.metrics_csv.read_text()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one) and list(one) == list(other)


@pytest.mark.parametrize(
    "overrides",
    [
        ("model@student=mlp_1200_dropout", "student.hidden=[20,20]", "optim=adamw"),
        SMALL_CNNS,
        ("method=crd", *SMALL_CNNS),
        ("teacher=ema", "teacher.decay=0.9", "method=kd"),
    ],
    ids=["dropout", "batch norm", "memory", "ema"],
)
@pytest.mark.parametrize("count", [3, 50])
def test_several_steps_in_a_call_are_the_same_steps(tmp_path, overrides, count):
    """7 batches an epoch, the last one of 4: neither 3 nor 50 divides them."""
    one, curves = trained(tmp_path / "one", *overrides)
    many, other = trained(tmp_path / "many", *overrides, f"trainer.steps_per_call={count}")
    assert same(one, many)
    assert curves == other


@pytest.mark.parametrize("count", [1, 3])
def test_the_bar_counts_steps(tmp_path, monkeypatch, count):
    quiet()
    totals, reached = [], []
    add_task, update = Progress.add_task, Progress.update
    monkeypatch.setattr(ShowProgress, "INTERVAL_S", -1)
    monkeypatch.setattr(
        Progress,
        "add_task",
        lambda self, *args, **given: totals.append(given["total"]) or add_task(self, *args, **given),
    )
    monkeypatch.setattr(
        Progress,
        "update",
        lambda self, *args, **given: reached.append(given["completed"]) or update(self, *args, **given),
    )
    config = configured(*SHORT, "teacher=random", f"trainer.steps_per_call={count}")
    data = build.data(config)
    console = Console(file=io.StringIO(), force_terminal=True)
    trainings = Trainings(data, Store(tmp_path), tmp_path / "part", config.trainer, console, lambda *_: None)
    trainings.obtain(plan(config, data).student)
    assert totals == [14]
    assert reached[-1] == 14


def test_several_steps_in_a_call_are_refused_where_they_cannot_be():
    with pytest.raises(ConfigError, match=r"trainer.steps_per_call=4 .*must meet at each step"):
        configured("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.steps_per_call=4")
    with pytest.raises(ConfigError, match=r"`trainer.steps_per_call` to be a whole number of at least 1"):
        configured("trainer.steps_per_call=0")
    with pytest.raises(ConfigError, match="accumulate_grad_batches"):
        configured("+trainer.accumulate_grad_batches=2", "trainer.steps_per_call=4")


def test_how_fast_a_run_is_does_not_name_it():
    assert len({config_hash(configured(f"trainer.steps_per_call={n}")) for n in (1, 8)}) == 1
    assert len({config_hash(configured(f"trainer.compile={word}")) for word in ("off", "auto", "false")}) == 1
    assert config_hash(configured("trainer.compile=on")) == config_hash(configured("trainer.compile=true"))
    assert config_hash(configured("trainer.compile=on")) != config_hash(configured())


def test_a_step_takes_few_python_calls():
    """Lightning's usual ways take several thousand; see benchmarks/overhead.py."""
    assert calls_of_kd(1) <= 1500
    assert calls_of_kd(32) <= 600


@pytest.mark.parametrize(
    ("accelerator", "capable", "expected"),
    [("cpu", True, "bf16-mixed"), ("cpu", False, "32-true"), ("mps", True, "32-true")],
)
def test_precision_auto_goes_by_the_device(monkeypatch, accelerator, capable, expected):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": capable})
    assert precision(TrainerConfig(1, accelerator=accelerator, precision="auto")) == expected
    assert precision(TrainerConfig(1, accelerator=accelerator, precision="16-mixed")) == "16-mixed"


def test_precision_auto_is_not_the_cpus_where_an_apple_gpu_is_chosen(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"bf16": True})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for there, expected in ((True, "32-true"), (False, "bf16-mixed")):
        monkeypatch.setattr("torch.backends.mps.is_available", lambda there=there: there)
        assert precision(TrainerConfig(1, precision="auto")) == expected


def loss_of(compiling, *overrides, arm="student"):
    """The loss of a small pair's student, or of its baseline; a batch; and what it has said."""
    config = configured(*SHORT, "teacher=random", *overrides)
    data = build.data(config)
    recipe = getattr(plan(config, data), arm)
    members = [build.network(member.model, data, "teacher") for member in recipe.teacher.members]
    teacher = build.teacher_of(recipe, members, data)
    student, objective, _ = build.student(recipe, data, teacher)
    objective.begin_epoch(0)
    said = []
    batch = data.on_device(next(iter(data.train_dataloader())), torch.device("cpu"))
    return BatchLoss(student, teacher, objective, compiling, said.append), batch, said


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_or_not_the_loss_is_the_same():
    loss, batch, _ = loss_of("on", "student.hidden=[8]")
    for one, other in zip(loss.eager(batch)[1].values(), loss(batch)[1].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("arm", ["student", "baseline"])  # two terms, and one of weight 1
def test_compiled_gradients_are_those_of_the_loss_as_it_is(arm):
    loss, batch, _ = loss_of("on", "student.hidden=[8]", arm=arm)
    weights = list(loss.student.parameters())
    found = torch.autograd.grad(loss(batch)[0], weights)
    expected = torch.autograd.grad(loss.eager(batch)[0], weights)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_comparison_leaves_everything_as_it_was(monkeypatch):
    monkeypatch.setattr("kd.batch_loss.COMPARED_STEPS", 2)
    monkeypatch.setattr("torch.compile", lambda run, **_: run)
    loss, batch, said = loss_of("auto", *SMALL_CNNS)
    before = copy.deepcopy(loss.student.state_dict())
    torch.manual_seed(5)
    loss._is_faster_compiled(batch)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert same(before, loss.student.state_dict())
    assert all(parameter.grad is None for parameter in loss.student.parameters())
    assert "forward and backward compiled" in said[0]


def test_the_comparison_never_adds_to_the_gradients_of_a_cuda_graph(monkeypatch):
    """They lie in memory that the graph's next call writes over: torch refuses to add to them."""
    monkeypatch.setattr("kd.batch_loss.COMPARED_STEPS", 2)
    loss, batch, said = loss_of("auto", *SMALL_CNNS)
    kept = []

    def as_graphs_do(run, **_):
        def called(batch):
            kept.append([p.grad is not None for p in loss.student.parameters()])
            return run(batch)

        return called

    monkeypatch.setattr("torch.compile", as_graphs_do)
    loss._is_faster_compiled(batch)
    assert len(kept) == 4
    assert not any(map(any, kept))
    assert "forward and backward compiled" in said[0]


def test_what_the_user_says_of_compiling_stands_over_a_checkpoint():
    for asked, expected in (("off", "off"), ("on", "on"), ("auto", "on")):
        loss, _, _ = loss_of(asked)
        loss.load_state_dict({"compiling": "on"})
        assert loss.state_dict() == {"compiling": expected}


class Viewed(torch.nn.Sequential):
    """Takes no images that are laid out as (B, H, W, C)."""

    def forward(self, image):
        return self[1](self[0](image).view(len(image), -1))


def test_a_teacher_that_takes_no_channels_last_decides_from_the_first_step_on():
    layers = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(4 * 64, 10)
    student = Tapped(torch.nn.Sequential(torch.nn.Conv2d(3, 10, 8), torch.nn.Flatten()))
    objective = loss_of("off")[0].objective
    loss = BatchLoss(student, Frozen(Tapped(Viewed(*layers))), objective, "off", lambda _: None)
    loss.is_channels_last = True  # the student would
    seen = []
    student.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    label = torch.arange(4)
    for _ in range(2):
        loss(Batch(torch.randn(4, 3, 8, 8), label, label))
    assert not loss.is_channels_last
    assert seen == [True, True]


def test_a_compiler_that_fails_is_said_and_left_alone(monkeypatch):
    def fails(*_, **__):
        def run(_batch: Batch):
            raise RuntimeError("no compiler here\nmore")

        return run

    monkeypatch.setattr("torch.compile", fails)
    loss, batch, said = loss_of("auto")
    assert not loss._is_faster_compiled(batch)
    assert said == ["not compiled: RuntimeError: no compiler here"]


def test_on_a_cpu_nothing_is_compiled_by_itself():
    loss, batch, said = loss_of("auto")
    loss(batch)
    assert loss.state_dict() == {"compiling": "off"}
    assert not said
