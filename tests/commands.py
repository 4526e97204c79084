"""Runs the command inside the test process: the same entry point, without seconds of imports each time."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from kd import cli
from kd.run import run
from kd.schema import RunConfig, check

#: as a user would shorten a run, with nothing that leaves the machine
QUICK = ("trainer.max_epochs=2", "data.train_limit=192", "logger=csv", "latency=false")

#: networks that have every kind of layer a method can ask for, of different depths
SMALL_CNNS = ("model@student=resnet8", "model@teacher.model=resnet20")


def configured(*overrides: str) -> RunConfig:
    """The checked configuration of a command line."""
    return check(cli.compose(list(overrides)))


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
