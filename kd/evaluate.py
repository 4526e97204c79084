"""One pass over the test set for each finished arm, and the arm's block of result.json."""

from typing import Any

import torch
from torch import Tensor

from kd import result
from kd.data import DistillationData
from kd.metrics import test_metrics
from kd.recipe import Plan
from kd.store import Entry
from kd.taps import Tapped
from kd.teachers import Frozen, Teacher
from kd.train import Trainings


def arms(planned: Plan, trainings: Trainings, device: torch.device) -> dict[str, Any]:
    """Evaluate teacher, baseline and student, and return their blocks.

    A run without a teacher's network has two; one whose method delivers more networks (mutual learning) has these too.
    """
    data = trainings.data
    blocks: dict[str, Any] = {}
    teacher_logits = None
    if (taught := trainings.teacher_arm(planned)) is not None:
        teacher, model, key, meta = taught
        teacher_logits, target = predictions(teacher, data, device)
        test = test_metrics(teacher_logits, target)
        blocks["teacher"] = result.arm(model, teacher, data, key, meta, test)
    for name, recipe in (("baseline", planned.baseline), ("student", planned.student)):
        blocks[name] = _block(trainings, trainings.obtain(recipe), device, teacher_logits)
    for name, entry in trainings.delivered(planned.student).items():
        blocks[name] = _block(trainings, entry, device, teacher_logits)
    return blocks


def _block(trainings: Trainings, entry: Entry, device: torch.device, teacher_logits: Tensor | None) -> dict[str, Any]:
    """Evaluate a stored network that is not the teacher."""
    network = Frozen(Tapped(trainings.network(entry, "student")))
    logits, target = predictions(network, trainings.data, device)
    test = test_metrics(logits, target, teacher_logits)
    return result.arm(entry.meta["model"], network, trainings.data, entry.key, entry.meta, test)


def predictions(network: Teacher, data: DistillationData, device: torch.device) -> tuple[Tensor, Tensor]:
    """Read the test set once and return logits (N, C) and targets (N,) on the CPU.

    A `Teacher` is any frozen network, or several: eval mode and no gradient are its own business.
    """
    network.to(device)
    logits, targets = [], []
    for raw in data.test_dataloader():
        batch = data.on_device(raw, device)
        output = network(batch)
        assert output is not None, "only arms with a network are evaluated"
        logits.append(output.logits.float().cpu())
        targets.append(batch.target.cpu())
    return torch.cat(logits), torch.cat(targets)
