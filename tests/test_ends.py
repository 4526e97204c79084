"""How runs end that cannot go on: at the step, by name, with an exit status, error.txt and what can be tried."""

import os
import re
import signal

import pytest
import torch

from kd import checkpoints, signals
from kd.distiller import Distiller
from kd.finite import Watch
from kd.losses.hard import HardTarget
from kd.losses.kd import KD
from kd.saving import Save
from tests.commands import QUICK, Command


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command(tmp_path, monkeypatch, capsys)


def error_txt(command):
    [file] = command.folder.glob("outputs/digits_kd/*/error.txt")
    return file.read_text()


def newest(command):
    [file] = (f for f in command.folder.glob("outputs/*/*/checkpoints/*.ckpt") if "previous" not in f.name)
    return file


# --- NaN and infinity -------------------------------------------------------------------------------------------------

LONG = (*QUICK, "trainer.max_epochs=4", "data.batch_size=24", "method.temperature=7", "optim.optimizer.lr=0.002")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_stops_at_that_step(command, monkeypatch, value):
    original, seen = KD.forward, []

    def forward(self, *arguments):
        loss = original(self, *arguments)
        seen.extend([1] * torch.is_grad_enabled())
        return loss * value if len(seen) == 8 + 3 else loss  # eight steps an epoch

    with monkeypatch.context() as patch:
        patch.setattr(KD, "forward", forward)
        done = command(*LONG)
    assert done.status == 5
    pattern = r"student: loss, \w+ became NaN or infinite in epoch 2, step 3 \(learning rate 0.002;.*T = 7"
    assert re.search(pattern, done.err), done.err
    assert "optim.optimizer.lr" in done.err
    assert done.err.endswith(f"{newest(command).relative_to(command.folder)} is from before.\n")
    assert error_txt(command).startswith(done.err.removeprefix("Error: ").rstrip())
    content = torch.load(newest(command), weights_only=True)
    assert content["epoch"] == 0  # the last one before, and finite
    assert all(value.isfinite().all() for value in content["state_dict"].values())
    again = command(*LONG)
    assert again.status == 0, again.err
    assert "continuing after epoch 1 of 4" in again.out
    assert not list(command.folder.glob("outputs/*/*/error.txt"))


def test_an_end_before_the_first_checkpoint_promises_none(command, monkeypatch):
    original = KD.forward
    monkeypatch.setattr(KD, "forward", lambda self, *arguments: original(self, *arguments) * float("nan"))
    done = command(*LONG)
    assert done.status == 5
    assert "in epoch 1, step 1 " in done.err
    assert done.err.endswith("No checkpoint was written yet.\n")


def test_weights_that_are_not_finite_are_never_saved(command, monkeypatch):
    original = Save.on_train_epoch_end

    def spoil(self, trainer, module):
        if module.arm == "student" and trainer.current_epoch == 1:
            next(module.student.parameters()).data.view(-1)[0] = float("inf")
        original(self, trainer, module)

    monkeypatch.setattr(Save, "on_train_epoch_end", spoil)
    done = command(*LONG)
    assert done.status == 5
    assert "student: weights became NaN or infinite in epoch 2" in done.err
    assert checkpoints.read_position(newest(command)).epochs == 1


@pytest.mark.parametrize(("at", "known"), [(1, 16), (15, 16), (16, 16), (17, 32)])
def test_a_device_that_is_not_waited_for_still_tells_the_exact_step_and_terms(monkeypatch, at, known):
    monkeypatch.setattr("kd.finite.processes", lambda: 2)
    monkeypatch.setattr("kd.finite.everyones", lambda own: [None, own])
    watch = Watch()
    for step in range(1, 40):
        kl = float("inf") if step >= at else 1.0
        found = watch.see(step, {"loss": torch.tensor(kl), "ce": torch.tensor(1.0), "kl": torch.tensor(kl)})
        if found:
            break
    assert (step, found.step, found.terms) == (known, at, ["loss", "kl"])


# --- a network that has learned nothing -------------------------------------------------------------------------------


def test_a_network_at_chance_is_named_with_the_likely_cause(command):
    dead = ("method.temperature=20", "method.alpha=1.0", "optim=sgd", "optim.optimizer.lr=1e-9", "data.val=200")
    done = command(*QUICK, *dead)
    assert done.status == 0
    lines = [line for line in done.out.splitlines() if line.startswith("student  warning: validation accuracy")]
    assert len(lines) == 1
    assert "where guessing has 11.2%" in lines[0] and "T^2 = 400" in lines[0]
    assert "warning" not in command(*QUICK, "trainer.max_epochs=8", "data.train_limit=1000").out


def test_few_validation_images_are_no_reason_for_a_warning(command):
    dead = ("optim=sgd", "optim.optimizer.lr=1e-9", "data.val=5")
    assert "warning: validation accuracy" not in command(*QUICK, *dead).out


def test_a_run_that_continues_does_not_warn_again(command):
    dead = (*QUICK, "optim=sgd", "optim.optimizer.lr=1e-9", "data.val=200", "trainer.max_epochs=4")
    first = command.cut("student", *dead, after=2)
    again = command(*dead)
    assert again.status == 0, again.err
    assert "student  continuing after epoch" in again.out
    warned = [out.count("student  warning: validation accuracy") for out in (first.out, again.out)]
    assert warned == [1, 0]


# --- memory, workers, whatever ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "Out of memory with data.batch_size=64 (CUDA",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "smaller data.batch_size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "worker (pid 7) is killed by signal"),
    ],
)
def test_what_the_machine_lacks_is_said_with_what_to_try(command, monkeypatch, error, said):
    def fail(self, batch):
        raise error

    monkeypatch.setattr(Distiller, "step", fail)
    done = command(*QUICK, "data.batch_size=64")
    assert done.status == 1
    assert said in done.err
    assert "Traceback" not in done.err
    assert said in error_txt(command)
    assert "Traceback" in error_txt(command)


def test_a_mistake_of_ours_leaves_error_txt_and_closed_logs(command, monkeypatch):
    from kd.tracking.tracking import Tracking

    closed, close = [], Tracking.close
    monkeypatch.setattr(Tracking, "close", lambda self: (closed.append(1), close(self)))

    def fail(self, *_, **__):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(HardTarget, "begin_epoch", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        command(*QUICK)
    assert error_txt(command).startswith("RuntimeError: a mistake\n")
    assert closed == [1]


# --- signals ----------------------------------------------------------------------------------------------------------


def test_the_first_ctrl_c_waits_and_the_second_does_not():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in a shell's background ignore it
    try:
        heard = signals.Signals()
        with heard.kept():
            heard.watch()
            os.kill(os.getpid(), signal.SIGINT)
            assert heard.asked == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_the_process_does_not_die_of_lets_the_training_go_on():
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda *_: seen.append("requeued"))
    try:
        heard = signals.Signals()
        with heard.kept():
            heard.watch()
            os.kill(os.getpid(), signal.SIGUSR2)
            assert (heard.asked, seen) == (signal.SIGUSR2, [])
            heard.leave(heard.asked)  # after the checkpoint
            assert (heard.asked, seen) == (0, ["requeued"])
            os.kill(os.getpid(), signal.SIGUSR2)
            assert heard.asked == signal.SIGUSR2
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        heard = signals.Signals()
        with heard.kept():
            heard.watch()
            os.kill(os.getpid(), signal.SIGINT)
            assert heard.asked == 0
    finally:
        signal.signal(signal.SIGINT, before)
