"""Recipes: everything that determines a trained network's weights, and so its key in the store."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kd.data.base import DistillationData, View
from kd.losses.objective import build_objective
from kd.schema import OptimConfig, RunConfig
from kd.store import recipe_key, sha256

Node = dict[str, Any]  # a config node with `_target_`


@dataclass(frozen=True)
class File:
    """A network whose weights were trained elsewhere."""

    path: Path
    model: Node

    @cached_property
    def key(self) -> str:
        return f"file-{sha256(self.path)[:16]}"


@dataclass(frozen=True)
class TeacherPlan:
    """A teacher: its kind, the networks it is made of, and its settings."""

    kind: str
    members: tuple["Recipe | File", ...] = ()
    decay: float | None = None
    correct_probability: float | None = None

    def content(self) -> dict[str, Any]:
        kind = "frozen" if self.kind in ("trained", "checkpoint", "self") else self.kind
        settings = {"decay": self.decay, "correct_probability": self.correct_probability}
        return {
            "kind": kind,
            "members": [member.key for member in self.members],
            **{name: value for name, value in settings.items() if value is not None},
        }


@dataclass(frozen=True)
class Recipe:
    """How one network is trained. `label` names it within the run; everything else determines its weights."""

    label: str
    model: Node
    method: Node
    teacher: TeacherPlan
    view: View
    data: dict[str, Any]
    optim: OptimConfig
    epochs: int
    precision: str
    gradient_clip_val: float | None

    @property
    def seed(self) -> int:
        return self.view.seed

    def taps(self, side: str) -> list[str]:
        """The intermediate outputs that the method reads of the "student" or the "teacher"."""
        taps: list[str] = (self.method.get("taps") or {}).get(side, [])
        return taps

    @cached_property
    def content(self) -> dict[str, Any]:
        method = {name: value for name, value in self.method.items() if name != "name" and value not in (None, {})}
        return {
            "model": self.model,
            "method": method,
            "teacher": self.teacher.content() if build_objective(self.method).needs_teacher else None,
            "data": self.data,
            "optim": {"optimizer": self.optim.optimizer, "schedule": self.optim.schedule},
            "epochs": self.epochs,
            "precision": self.precision,
            "gradient_clip_val": self.gradient_clip_val,
            "seed": self.seed,
        }

    @cached_property
    def key(self) -> str:
        return recipe_key(self.content)


@dataclass(frozen=True)
class Plan:
    """The arms of a run."""

    teacher: TeacherPlan
    baseline: Recipe
    student: Recipe

    def recipes(self) -> list[Recipe]:
        """Every network to find or train, each after those it learns from."""
        found: list[Recipe] = []

        def visit(member: Recipe | File) -> None:
            if isinstance(member, Recipe):
                for below in member.teacher.members:
                    visit(below)
                if member not in found:
                    found.append(member)

        for member in (*self.teacher.members, self.baseline, self.student):
            visit(member)
        return found


def plan(config: RunConfig, data: DistillationData) -> Plan:
    """Turn a checked configuration into the recipes of its arms. Raises `ConfigError` for an impossible method."""
    method = vars(config.method)
    teacher = _teacher(config, data)
    return Plan(
        teacher=teacher,
        baseline=_recipe(config, data, "baseline", config.student, hard_targets(config.baseline.label_smoothing)),
        student=_recipe(config, data, "student", config.student, method, teacher),
    )


def hard_targets(label_smoothing: float) -> Node:
    """The method of an arm without a teacher; equal to conf/method/hard.yaml."""
    term = {"_target_": "kd.losses.hard.HardTarget", "weight": 1.0, "label_smoothing": label_smoothing}
    return {"name": "hard", "terms": {"ce": term}}


def _teacher(config: RunConfig, data: DistillationData) -> TeacherPlan:
    """The teacher's plan; every member is trained, so a self teacher without trained weights cannot be."""
    teacher = config.teacher
    hard = hard_targets(teacher.label_smoothing)

    def trained(label: str, offset: int = 0) -> Recipe:
        return _recipe(config, data, label, teacher.model, hard, offset=offset)

    if teacher.kind in ("none", "virtual", "ema"):
        return TeacherPlan(teacher.kind, decay=teacher.decay, correct_probability=teacher.correct_probability)
    if teacher.kind == "ensemble":
        if teacher.path:
            return TeacherPlan("ensemble", tuple(File(Path(path), teacher.model) for path in teacher.path))
        assert teacher.size is not None
        return TeacherPlan("ensemble", tuple(trained(f"teacher-{n + 1}", n) for n in range(teacher.size)))
    member: Recipe | File = File(Path(teacher.path), teacher.model) if teacher.path else trained("teacher")
    for generation in range(1, teacher.generations or 1):  # born-again: each generation teaches the next (1805.04770)
        below = TeacherPlan("self", (member,))
        label = f"teacher-{generation + 1}"
        member = _recipe(config, data, label, teacher.model, vars(config.method), below, offset=generation)
    return TeacherPlan(teacher.kind, (member,))


def _recipe(
    config: RunConfig,
    data: DistillationData,
    label: str,
    model: Node,
    method: Node,
    teacher: TeacherPlan | None = None,
    *,
    offset: int = 0,
) -> Recipe:
    """One network's recipe. A teacher's own settings win over the run's; baseline and student share all of theirs."""
    arm = label.partition("-")[0]
    own = config.teacher if arm == "teacher" else None
    augment = (own.augment if own else None) or config.data.get("augment", "none")
    view = View(arm, own.seed + offset if own else config.seed, augment)
    optim = OptimConfig(**own.optim) if own and own.optim else config.optim
    return Recipe(
        label=label,
        model=model,
        method=method,
        teacher=teacher or TeacherPlan("none"),
        view=view,
        data=data.identity(view),
        optim=optim,
        epochs=config.trainer.max_epochs,
        precision=config.trainer.precision,
        gradient_clip_val=config.trainer.gradient_clip_val,
    )
