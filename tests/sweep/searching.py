"""A search without training: a launcher that writes the results that a test wants, and a look into the study."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import optuna
from omegaconf import OmegaConf

from kd.folder import config_hash
from kd.rules import check
from kd.schema import RunConfig
from kd.sweep.task import DONE, FAILED, Launcher, Outcome, Task

Score = Callable[[RunConfig], float | None]  # validation accuracy; None: the job fails


class Pretended(Launcher):
    """Does no task; `scores` says what each job would have found. Test accuracy is the opposite, to mislead."""

    def __init__(self, scores: Score, slots: int = 1) -> None:
        self.scores, self.at_once = scores, slots
        self.seen: list[list[RunConfig]] = []  # the jobs of every call

    def slots(self) -> int:
        return self.at_once

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        tasks = list(tasks)
        configs = [check(OmegaConf.create(task.config)) for task in tasks]
        if any(task.network is None for task in tasks):
            self.seen.append([])
        for task, config in zip(tasks, configs, strict=True):
            if task.network is not None:
                yield Outcome(task, DONE)
                continue
            self.seen[-1].append(config)
            score = self.scores(config)
            if score is None:
                yield Outcome(task, FAILED, 5, "training produced NaN")
                continue
            arm = {"test": {"accuracy": 1 - score}, "val": {"accuracy": score}}
            result = {"status": "done", "config_hash": config_hash(config), "wall_s": 1.0}
            task.folder.mkdir(parents=True)
            (task.folder / "result.json").write_text(json.dumps(result | {"arms": {"student": arm, "baseline": arm}}))
            yield Outcome(task, DONE)

    @property
    def jobs(self) -> list[RunConfig]:
        return [config for call in self.seen for config in call]


def peak_at_7(config: RunConfig) -> float:
    return 1 - abs(config.method.temperature - 7) / 20


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials of the one study below this folder."""
    (file,) = folder.glob("outputs/*/sweep-*/study.db")
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    (summary,) = optuna.get_all_study_summaries(storage)
    found = optuna.load_study(study_name=summary.study_name, storage=storage).trials
    storage.remove_session()
    storage.engine.dispose()
    return found


def sweep_file(folder: Path) -> dict:
    (file,) = folder.glob("outputs/*/sweep-*/sweep.json")
    return json.loads(file.read_text())
