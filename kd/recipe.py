"""Recipes: everything that determines a trained network's weights, and so its key in the store."""

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kd.data.base import DistillationData, View
from kd.files import sha256
from kd.fork import Start
from kd.losses.configure import build_objective, first_stage, first_stage_epochs
from kd.losses.objective import Objective
from kd.losses.term import Roles
from kd.precision import precision
from kd.schema import OptimConfig, RunConfig, TeacherConfig
from kd.store import recipe_key

Node = dict[str, Any]  # a config node with `_target_`
INITIAL = "-initial"  # ends the label of a first stage


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
        kind = "frozen" if self.kind in ("trained", "checkpoint", "self", "random") else self.kind
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
    peer: Node  # the network that a method trains beside the student, if it does
    roles: dict[str, Roles] = field(default_factory=dict)  # the layers of "student" and "teacher" by role
    initial: "Recipe | None" = None  # a first stage, whose network this one starts from
    start: Start | None = None  # weights of another run that this one starts from
    is_initial: bool = False  # of a first stage the last epoch stands: its logits mean nothing yet

    @property
    def seed(self) -> int:
        return self.view.seed

    def objective(self) -> Objective:
        """A new objective, its terms not yet built for any network."""
        return build_objective(self.method, self.roles.get("student"), self.roles.get("teacher"))

    @cached_property
    def content(self) -> dict[str, Any]:
        skipped = ("name", "initial")
        method = {name: value for name, value in self.method.items() if name not in skipped and value not in (None, {})}
        objective = self.objective()
        return {
            **({"layers": layers} if (layers := objective.layers_by_term()) else {}),
            **({"peer": self.peer} if objective.needs_peer else {}),
            **({"initial": self.initial.key} if self.initial else {}),
            **({"start": self.start.sha256} if self.start else {}),
            "model": self.model,
            "method": method,
            "teacher": self.teacher.content() if objective.needs_teacher else None,
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

    def describe(self) -> list[str]:
        """What the student minimises and reads, stage by stage, in words."""
        lines = []
        if start := self.baseline.start:
            lines.append(f"student and baseline start from {start.folder} (SHA-256 {start.sha256[:16]}...)")
        for recipe in filter(None, (self.student.initial, self.student)):
            objective = recipe.objective()
            first = f", in {recipe.epochs} epochs before anything else" if recipe.is_initial else ""
            lines.append(f"student minimises  {objective.describe()}{first}")
            lines += [f"  {line}" for line in objective.describe_layers()]
        return lines

    def recipes(self) -> list[Recipe]:
        """Every network to find or train, each after those it learns from."""
        found: list[Recipe] = []

        def visit(member: Recipe | File) -> None:
            if isinstance(member, Recipe):
                for below in (*member.teacher.members, *filter(None, [member.initial])):
                    visit(below)
                if member not in found:
                    found.append(member)

        for member in (*self.teacher.members, self.baseline, self.student):
            visit(member)
        return found


def plan(config: RunConfig, data: DistillationData) -> Plan:
    """Turn a checked configuration into the recipes of its arms. Raises `ConfigError` for an impossible method."""
    teacher = _teacher(config, data)
    baseline = _recipe(config, data, "baseline", config.student, hard_targets(config.baseline.label_smoothing))
    student = _distilled(config, data, "student", config.student, teacher)
    if config.fork is not None:
        start = Start(**config.fork)
        baseline, student = _started(baseline, start), _started(student, start)
    return Plan(teacher, baseline, student)


def _started(recipe: Recipe, start: Start) -> Recipe:
    """The recipe of a network that starts from given weights, in its first stage if it has one."""
    if recipe.initial:
        return replace(recipe, initial=replace(recipe.initial, start=start))
    return replace(recipe, start=start)


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
            return TeacherPlan(
                "ensemble", tuple(File(Path(path), _constructor(teacher.model)) for path in teacher.path)
            )
        assert teacher.size is not None
        return TeacherPlan("ensemble", tuple(trained(f"teacher-{n + 1}", n) for n in range(teacher.size)))
    member: Recipe | File = (
        File(Path(teacher.path), _constructor(teacher.model)) if teacher.path else trained("teacher")
    )
    for generation in range(1, teacher.generations or 1):  # born-again: each generation teaches the next (1805.04770)
        below = TeacherPlan("self", (member,))
        label = f"teacher-{generation + 1}"
        member = _distilled(config, data, label, teacher.model, below, offset=generation)
    return TeacherPlan(teacher.kind, (member,))


def _distilled(
    config: RunConfig, data: DistillationData, label: str, model: Node, teacher: TeacherPlan, *, offset: int = 0
) -> Recipe:
    """The recipe of a network trained with the run's method, with that of the method's first stage if it has one."""
    method = asdict(config.method)
    recipe = _recipe(config, data, label, model, method | {"initial": None}, teacher, offset=offset)
    if (first := first_stage(method)) is None:
        return recipe
    initial = _recipe(config, data, label + INITIAL, model, first, teacher, offset=offset)
    initial = replace(initial, epochs=first_stage_epochs(method, recipe.epochs), is_initial=True)
    return replace(recipe, initial=initial)


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
    roles: dict[str, Roles] = {"student": model.get("taps") or {}}
    peer = model
    if isinstance(config.teacher.model, dict):
        roles["teacher"] = config.teacher.model.get("taps") or {}
        peer = config.teacher.model
    return Recipe(
        label=label,
        model=_constructor(model),
        method=method,
        teacher=teacher or TeacherPlan("none"),
        view=view,
        data=data.identity(view),
        optim=optim,
        epochs=_epochs(config, own),
        precision=precision(config.trainer),
        gradient_clip_val=config.trainer.gradient_clip_val,
        peer=_constructor(peer),
        roles=roles,
    )


def _epochs(config: RunConfig, teacher: TeacherConfig | None) -> int:
    """A teacher may be trained for longer than its students; a random one never is, whatever an experiment says."""
    if teacher is not None and teacher.kind == "random":
        return 0
    own = teacher.max_epochs if teacher else None
    return config.trainer.max_epochs if own is None else own


def _constructor(model: Node) -> Node:
    """A network's configuration without `taps`, which are not the network's arguments but names of its layers."""
    return {name: value for name, value in model.items() if name != "taps"}
