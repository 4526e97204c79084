"""Runs the command inside the test process: the same entry point, without seconds of imports each time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from kd import cli
from kd.rules import check
from kd.run import run
from kd.saving import Save
from kd.schema import RunConfig

ROOT = Path(__file__).parents[1]

#: as a user would shorten a run, with nothing that leaves the machine; so little may teach a teacher nothing
QUICK = ("trainer.max_epochs=2", "data.train_limit=192", "logger=csv", "latency=false", "teacher.allow_weak=true")

#: networks that have every kind of layer a method can ask for, of different depths
SMALL_CNNS = ("model@student=resnet8", "model@teacher.model=resnet20")


def configured(*overrides: str) -> RunConfig:
    """The checked configuration of a command line."""
    return check(cli.compose(list(overrides)))


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m kd.run ARGUMENTS` as a process of its own in a folder, to be interrupted or killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "kd.run", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that starts the tests in the background has them, and what they start, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(process: subprocess.Popen[str], is_there: Callable[[], object], seconds: float = 240) -> None:
    """Wait until a process has left what is looked for. Fails if it ends before, or takes too long."""
    started_at = time.monotonic()
    while not is_there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - started_at < seconds
        time.sleep(0.01)


@dataclass
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str


class Command:
    """`command("method=kd", "seed=1")` is `python -m kd.run method=kd seed=1` in an empty folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        monkeypatch.chdir(folder)
        monkeypatch.setattr("signal.signal", lambda *_: None)  # the test process keeps its own handlers

    def __call__(self, *arguments: str) -> Done:
        GlobalHydra.instance().clear()
        self.monkeypatch.setattr(sys, "argv", ["kd.run", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.entry(run)
        captured = self.capsys.readouterr()
        return Done(int(left.value.code or 0), captured.out, captured.err)

    def quick(self, *arguments: str) -> Path:
        """A short run that must succeed; returns its folder."""
        done = self(*QUICK, *arguments)
        assert done.status == 0, done.err
        return self.folder / done.out.split("\n", 1)[0].split()[-1]

    def cut(self, arm: str, *arguments: str, after: int = 1) -> Done:
        """A run that Ctrl-C ends when an arm has trained so many epochs."""
        original = Save.on_train_epoch_end

        def save_and_end(save: Save, trainer: Any, module: Any) -> None:
            original(save, trainer, module)
            if module.arm == arm and trainer.current_epoch + 1 == after:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Save, "on_train_epoch_end", save_and_end)
            done = self(*arguments)
        assert done.status == 130, done.err
        return done
