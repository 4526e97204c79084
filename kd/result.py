"""What result.json holds (schema 1; described in the README)."""

import inspect
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import kd
from kd import claims
from kd.curves import read_metrics, write_metrics
from kd.data import DistillationData
from kd.files import METRICS, RESULT, write_json
from kd.nets.cost import macs, parameters, size_bytes
from kd.recipe import Plan
from kd.schema import RunConfig
from kd.store import save_weights
from kd.teachers import Teacher
from kd.train import Trainings
from kd.trust import resolve

SCHEMA = 1
FACTS = ("num_classes", "image_shape")  # arguments of every network that follow from the data
PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics")


def model_name(model: dict[str, Any]) -> str:
    """A network in a few words, its class and what differs from the class's defaults: `MLP(hidden=[800, 800])`."""
    name = str(model["_target_"]).rpartition(".")[2]
    defaults = {key: p.default for key, p in inspect.signature(resolve("model", model["_target_"])).parameters.items()}
    set_ones = {
        k: v
        for k, v in model.items()
        if not k.startswith("_") and k not in FACTS and (k not in defaults or _differ(v, defaults[k]))
    }
    if name.endswith("_model"):  # torchvision's or timm's, by name
        name = set_ones.pop("name")
    inside = set_ones.pop("network", None)
    if isinstance(inside, dict):  # a network around another one, which must be told sizes that the other has
        set_ones = {k: v for k, v in set_ones.items() if defaults.get(k) is not inspect.Parameter.empty}
    arguments = [f"{key}={value}" for key, value in set_ones.items()]
    if isinstance(inside, dict):
        arguments.insert(0, model_name(inside))
    return f"{name}({', '.join(arguments)})" if arguments else name


def arm(
    model: dict[str, Any],
    teacher: Teacher,
    data: DistillationData,
    key: str,
    meta: dict[str, Any],
    test: dict[str, Any],
) -> dict[str, Any]:
    """One arm's block. `meta` is its store entry's; a network trained elsewhere has none, and null figures."""
    return {
        "model": model_name(model) if len(teacher.networks) == 1 else f"{len(teacher.networks)} x {model_name(model)}",
        "params": sum(parameters(network) for network in teacher.networks),
        "macs": sum(macs(network, data.image_shape) for network in teacher.networks),
        "size_bytes": sum(size_bytes(network) for network in teacher.networks),
        "store_key": key,
        "epochs": meta.get("epochs"),
        "initial_epochs": meta.get("initial_epochs", 0),  # of a method's first stage, before these
        "selected_epoch": meta.get("selected_epoch"),
        "train_s": meta.get("train_s"),
        "images_per_s": meta.get("images_per_s"),
        "val": meta.get("val"),
        "test": test,
    }


def assemble(
    config: RunConfig,
    config_hash: str,
    planned: Plan,
    data: DistillationData,
    arms: dict[str, Any],
    device: torch.device,
    wall_s: float,
) -> dict[str, Any]:
    """Everything that result.json holds (its schema is in the README)."""
    return {
        "schema": SCHEMA,
        "experiment": config.experiment,
        "seed": config.seed,
        "status": "done",
        "config_hash": config_hash,
        "forked_from": config.fork,
        "git": _git_commit(),
        "versions": {"python": platform.python_version(), "kd": kd.__version__, **{p: version(p) for p in PACKAGES}},
        "device": _device_name(device),
        "wall_s": wall_s,
        "data": {
            "name": data.name,
            **data.counts(),
            "classes": data.class_names,
            "omitted": data.omit,
            "omitted_from": data.omit_from if data.omit else [],
        },
        "method": {
            **asdict(config.method),
            "initial_objective": planned.student.initial.objective().describe() if planned.student.initial else None,
            "objective": planned.student.objective().describe(),
        },
        "arms": arms,
        "claim": claims.block(config.claim, config, arms),
    }


def _differ(value: Any, default: Any) -> bool:
    return bool(value != (list(default) if isinstance(default, tuple) else default))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else str(device)


def _git_commit() -> str | None:
    """The commit of the checkout that the code runs from, marked if it has changes; None outside of one."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():  # installed, perhaps inside somebody else's repository
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def write_files(folder: Path, content: dict[str, Any], planned: Plan, trainings: Trainings) -> None:
    """Write the run's weights and curves."""
    student = trainings.obtain(planned.student)
    for name, entry in {"student": student, **trainings.delivered(planned.student)}.items():
        save_weights(trainings.network(entry, "student"), folder / f"{name}.safetensors", entry.meta)
    write_metrics(folder / METRICS, _curves(content, planned, trainings))


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write result.json: the last thing that a run does, but for its page, so that a folder with one is complete."""
    write_json(folder / RESULT, content)


def _curves(content: dict[str, Any], planned: Plan, trainings: Trainings) -> list[dict[str, str]]:
    """The curves of all arms, also of those found in the store, and the test metrics at the end."""
    rows = []
    for recipe in planned.recipes():
        curves = read_metrics(trainings.obtain(recipe).metrics_csv)
        rows += [{**row, "arm": recipe.label} for row in curves]
    for name, block in content["arms"].items():
        for metric, value in block["test"].items():
            if isinstance(value, int | float):
                rows.append({"arm": name, "epoch": "", "step": "", "name": f"test/{metric}", "value": repr(value)})
    return rows
