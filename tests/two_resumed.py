"""Trains a student in two processes, cut off within epochs and continued; the test starts this as two processes."""

import sys
from pathlib import Path

from rich.console import Console

from kd import build
from kd.parallel import Team
from kd.quiet import quiet
from kd.recipe import plan
from kd.saving import Save
from kd.store import Store
from kd.train import Trainings
from tests.commands import configured

SETTINGS = (
    *("method=kd", "teacher=random", "model@student=wrn_16_1", "student.dropout=0.3", "data.augment=shift"),
    *("data.batch_size=12", "data.train_limit=44", "data.val=10", "data.test_limit=4", "trainer.max_epochs=2"),
    *("optim=adamw", "trainer.strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "logger=csv"),
)


class CutOff(BaseException):
    """As sudden as a kill, and no signal."""


def train(folder: Path, after: list[int], team: Team | None) -> Team:
    """Train, cut off after these steps of each network, and go on until it is done."""
    original, left = Save.on_train_batch_end, {}

    def save_and_end(self, trainer, module, outputs, batch, batch_idx):
        steps = left.setdefault(self.path.name, list(after))
        if steps and trainer.fit_loop.total_batch_idx + 1 == steps[0]:
            steps.pop(0)
            self._save(trainer)
            raise CutOff
        original(self, trainer, module, outputs, batch, batch_idx)

    Save.on_train_batch_end = save_and_end
    try:
        config = configured(*SETTINGS)
        team = team or Team(config.trainer)
        for _ in range(1 + 2 * len(after)):
            data = build.data(config)
            planned = plan(config, data)
            store, said = Store(folder / "store"), Console(quiet=True)
            trainings = Trainings(data, store, folder / "part", config.trainer, said, lambda *_: None, team)
            try:
                if team.leads:
                    trainings.obtain(planned.student)
                    team.announce({"done": True})
                else:
                    recipes = {recipe.key: recipe for recipe in planned.recipes()}
                    while "network" in (task := team.next_task() or {}):
                        trainings.follow(recipes[task["network"]], task["begun"])
                break
            except CutOff:
                continue
        assert all(not steps for steps in left.values())
    finally:
        Save.on_train_batch_end = original
    return team


if __name__ == "__main__":
    quiet()
    connected = train(Path(sys.argv[1]) / "whole", [], None)
    train(Path(sys.argv[1]) / "parts", [2, 5], connected)
    connected.close()
