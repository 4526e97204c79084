"""One pass over the test set for each finished arm, and the arm's block of result.json."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd import omission, result
from kd.data import DistillationData
from kd.metrics import test_metrics
from kd.nets.latency import latency
from kd.recipe import Node, Plan
from kd.taps import Tapped
from kd.teachers import Frozen, Teacher
from kd.train import Trainings


@dataclass(frozen=True)
class Arm:
    """A trained network, or several that are one teacher, with what the store says about it."""

    name: str
    network: Teacher
    model: Node
    key: str
    meta: dict[str, Any]

    role: str  # the arm whose view of the data it had: a student's peer and average saw what the student sees


@dataclass(frozen=True)
class Evaluation:
    """The arms' blocks of result.json, and what the arms say of the test images: logits (N, C), targets (N,)."""

    blocks: dict[str, Any]
    logits: dict[str, Tensor]
    target: Tensor


def evaluate(planned: Plan, trainings: Trainings, device: torch.device, *, timed: bool) -> Evaluation:
    """Evaluate every arm of a run, the teacher first. `timed`: measure latencies too."""
    data = trainings.data
    blocks: dict[str, Any] = {}
    logits: dict[str, Tensor] = {}
    target = torch.empty(0)
    for arm in _arms(planned, trainings):
        logits[arm.name], target = predictions(arm.network, data, data.test_dataloader(), device)
        test = test_metrics(logits[arm.name], target, logits.get("teacher") if arm.name != "teacher" else None)
        blocks[arm.name] = {
            **result.arm(arm.model, arm.network, data, arm.key, arm.meta, test),
            "latency_ms": latency(arm.network.networks, data.image_shape, device) if timed else None,
            **_omission(arm, data, logits[arm.name], target, device),
        }
    return Evaluation(blocks, logits, target)


def predictions(network: Teacher, data: DistillationData, loader: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Read a loader's images once and return logits (N, C) and targets (N,) on the CPU.

    A `Teacher` is any frozen network, or several: eval mode and no gradient are its own business.
    """
    network.to(device)
    logits, targets = [], []
    for raw in loader:
        batch = data.on_device(raw, device)
        output = network(batch)
        assert output is not None, "only arms with a network are evaluated"
        logits.append(output.logits.float().cpu())
        targets.append(batch.target.cpu())
    return torch.cat(logits), torch.cat(targets)


def _arms(planned: Plan, trainings: Trainings) -> Iterator[Arm]:
    """The teacher if it has a network, baseline, student, and what else the method delivers (a peer)."""
    if (taught := trainings.teacher_arm(planned)) is not None:
        yield Arm("teacher", *taught, "student" if planned.teacher.kind == "ema" else "teacher")
    entries = {"baseline": trainings.obtain(planned.baseline), "student": trainings.obtain(planned.student)}
    for name, entry in {**entries, **trainings.delivered(planned.student)}.items():
        network = Frozen(Tapped(trainings.network(entry, "student")))
        role = "baseline" if name == "baseline" else "student"
        yield Arm(name, network, entry.meta["model"], entry.key, entry.meta, role)


def _omission(arm: Arm, data: DistillationData, logits: Tensor, target: Tensor, device: torch.device) -> dict[str, Any]:
    """What an arm knows of the classes that it never saw; null for one that saw them all."""
    if not data.omit or arm.role not in data.omit_from:
        return {"omitted": None, "correction": None}
    loader = data.held_out_dataloader()
    held_out = predictions(arm.network, data, loader, device)[0] if len(loader) else None
    omitted, correction = omission.corrections(logits, target, data.omit, data.omit_bias, held_out, data.class_shares())
    return {"omitted": omitted, "correction": correction}
