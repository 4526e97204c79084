"""Folders of finished runs that were never trained, for tests of what is said about runs."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kd import claims
from kd.audit.request import parse
from kd.audit.runs import Job, plan
from kd.folder import config_hash, find_finished

IMAGES = 10_000


def arm_block(errors: int, store_key: str) -> dict[str, Any]:
    right = IMAGES - errors
    confusion = [[right // 2, errors], [0, right - right // 2]]
    test = {"accuracy": right / IMAGES, "errors": errors, "n": IMAGES, "nll": 0.1, "ece": 0.01, "confusion": confusion}
    test |= {"per_class_accuracy": [0.9, 1.0], "agreement_with_teacher": None, "kl_to_teacher": None}
    figures = {"model": "MLP", "params": 10, "macs": 10, "epochs": 2, "selected_epoch": 1, "train_s": 1.0}
    figures |= {"images_per_s": 10.0, "val": None, "test": test, "omitted": None}
    return {**figures, "store_key": store_key}


def write_run(folder: Path, job: Job, errors: dict[str, int]) -> Path:
    """The folder of a finished run of this configuration, with so many errors of each arm."""
    config, digest = job.config, config_hash(job.config)
    folder = folder / f"written-{digest}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(asdict(config)), encoding="utf-8")
    arms = {name: arm_block(n, "teacher" if name == "teacher" else f"{name}-{digest}") for name, n in errors.items()}
    content = {
        "schema": 1,
        "experiment": config.experiment,
        "seed": config.seed,
        "status": "done",
        "config_hash": digest,
        "git": "0123abc",
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "device": "cpu, 1 thread",
        "wall_s": 1.0,
        "data": {"name": "written", "train": 10, "val": 0, "test": IMAGES, "classes": ["a", "b"]}
        | {"omitted": [], "omitted_from": []},
        "method": {"name": "kd", "temperature": 4.0, "alpha": 0.5, "beta": None, "objective": "words"},
        "arms": arms,
        "claim": claims.block(config.claim, config, arms),
    }
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_all(given: list[str], errors: Callable[[str, int], dict[str, int]]) -> None:
    """Write every run that the audit needs; `errors(kind, seed)` is what each arm has, kind is "main", a versus, ..."""
    planned = plan(parse(given))
    groups = {"main": planned.main, **{" ".join(v): jobs for v, jobs in planned.versus.items()}, **planned.controls}
    for kind, jobs in groups.items():
        for seed, job in jobs.items():
            if find_finished(job.config) is None:  # of two parts that need the same run, the first has it
                write_run(Path("outputs") / job.config.experiment, job, errors(kind, seed))


def better(kind: str, seed: int) -> dict[str, int]:
    """Students with 20 to 30 errors fewer than their baselines, whose errors depend on the seed."""
    baseline = 150 + 7 * (seed % 4)
    return {"teacher": 80, "baseline": baseline, "student": baseline - 20 - seed}
