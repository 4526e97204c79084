"""The only place that turns configuration into objects."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn

from kd import parallel, trust
from kd.check import nearest
from kd.data import DistillationData, ForeignData
from kd.errors import ConfigError, UserError
from kd.foreign_weights import load_foreign
from kd.losses.objective import Objective
from kd.losses.term import Setting
from kd.recipe import File, Node, Recipe, TeacherPlan
from kd.schema import RunConfig, TrainerConfig
from kd.taps import Tapped
from kd.teachers import Ema, Ensemble, Frozen, NoTeacher, Teacher, Virtual
from kd.types import Batch


def data(config: RunConfig) -> DistillationData:
    """Build and read the dataset. Raises `ConfigError` or `DataError`."""
    built = _instantiate("data", config.data)
    if isinstance(built, L.LightningDataModule):
        found = built if isinstance(built, DistillationData) else ForeignData(built, config.data)
        found.group_steps(config.trainer.steps_per_call)
        return found
    raise ConfigError(f"`data._target_` must be a LightningDataModule, but {config.data['_target_']} is none.")


def network(model: Node, data: DistillationData, role: str = "student") -> nn.Module:
    """Build a network for a dataset's images and classes."""
    try:
        built = _instantiate(role, bound(model, data))
    except ConfigError as error:
        raise ConfigError(f"The {role}'s network cannot be built for {data.name}: {error}") from error
    if not isinstance(built, nn.Module):
        raise ConfigError(f"`{role}._target_` must build a torch.nn.Module, but {model.get('_target_')} does not.")
    return built


def bound(model: Node, data: DistillationData) -> Node:
    """Complete a network's configuration, and that of one inside it, with those of a dataset's facts that they take."""
    facts = {"num_classes": data.num_classes, "image_shape": list(data.image_shape)}
    parameters = _parameters("model", model)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = {k: v for k, v in facts.items() if k in parameters or (open_ended and k == "num_classes")}
    inside = {"network": bound(model["network"], data)} if isinstance(model.get("network"), dict) else {}
    return {**taken, **model, **inside}


def foreign_network(file: File, data: DistillationData) -> nn.Module:
    """Build a network and fill it with weights trained elsewhere. Raises `StoreError` if they do not fit."""
    built = network(file.model, data, "teacher")
    load_foreign(built, file.path, data)
    return built


def student(recipe: Recipe, data: DistillationData, taught_by: Teacher) -> tuple[Tapped, Objective, Node]:
    """Build a recipe's network, its objective with all its parts, and the network's configuration.

    Everything is initialised from the recipe's seed alone, but for the weights of another run that it may start from.
    The network comes first, so that baseline and student start from the same weights whatever their objectives draw.
    """
    objective = recipe.objective()
    facts: dict[str, Any] = {
        "num_classes": data.num_classes,
        "seed": recipe.seed,
        "student_roles": recipe.roles.get("student", {}),
        "teacher_roles": recipe.roles.get("teacher", {}),
        "transfer_set": data.transfer_set,
        "new_peer": lambda: network(recipe.peer, data, "teacher"),
    }
    layers = objective.layers("student")
    if recipe.teacher.kind == "ema":  # its taps are those of the copied student
        layers = tuple(dict.fromkeys((*layers, *objective.layers("teacher"))))

    def seeded(model: Node) -> nn.Module:
        torch.manual_seed(recipe.seed)
        built = network(model, data, role_of(recipe))
        if recipe.start:
            recipe.start.load_into(built)
        return built

    def replaced(model: Node) -> nn.Module:
        if recipe.start:
            raise ConfigError(
                f"Method {recipe.method['name']!r} replaces the student's network by another one, which cannot start "
                "from the student's weights. Choose another method, or leave fork away."
            )
        if recipe.initial or recipe.is_initial:
            raise ConfigError("A method that replaces the student's network cannot have an `initial` stage.")
        if recipe.label != "student" or recipe.teacher.kind == "ema":
            raise ConfigError(
                f"Method {recipe.method['name']!r} gives the student its teacher's classifier. Such a network cannot "
                "teach: set teacher.generations=1, and choose no teacher=ema."
            )
        return seeded(model)

    tapped = Tapped(seeded(recipe.model), layers, owner="student")
    image, model = torch.zeros(2, *data.image_shape), bound(recipe.model, data)
    tapped, replacement = complete(objective, tapped, taught_by, image, model, replaced, **facts)
    return tapped, objective, recipe.model if replacement is None else replacement


def complete(
    objective: Objective,
    student: Tapped,
    taught_by: Teacher,
    image: Tensor,
    model: Node,
    replaced: Callable[[Node], nn.Module],
    **facts: Any,
) -> tuple[Tapped, Node | None]:
    """Let an objective build its parts for a student, with the facts of a `Setting`, after what blank images show.

    Returns the student, or if a term replaces its network, what `replaced` makes of the new one's configuration, and
    that configuration.
    """
    setting = sampled(student, taught_by, image, **facts)
    replacement = objective.wrap(model, setting)
    if replacement is not None:
        student = Tapped(replaced(replacement), owner="student")
        setting = sampled(student, taught_by, image, **facts)
    objective.build(setting)
    return student, replacement


def wrapped_around(network: nn.Module, model: Node) -> nn.Module:
    """Build a replacement for a network that exists already."""
    arguments = {name: value for name, value in model.items() if name not in ("_target_", "network")}
    built = trust.resolve("student", model["_target_"])(network=network, **arguments)
    assert isinstance(built, nn.Module)
    return built


def sampled(student: Tapped, taught_by: Teacher, image: Tensor, **facts: Any) -> Setting:
    """Send blank images through both networks, so that a term can build its own parts for their layers."""
    taught_by.start(student)
    modes = {module: module.training for module in student.modules()}
    blank = torch.zeros(len(image), dtype=torch.int64)
    try:
        with torch.no_grad():
            output = student.eval()(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Setting(output, taught_by(Batch(image, blank, blank)), student.network, taught_by.single(), **facts)


def teacher(plan: TeacherPlan, networks: Sequence[nn.Module], taps: Sequence[str], num_classes: int) -> Teacher:
    """Make a teacher of trained networks. A teacher that needs networks cannot be built without them."""
    if len(networks) > 1 and taps:
        raise ConfigError(
            f"This method reads layers of the teacher ({', '.join(taps)}), but an ensemble has several networks. "
            "Choose teacher=trained, self, checkpoint or ema, or a method that reads logits only."
        )
    tapped = [Tapped(network, taps, owner="teacher") for network in networks]
    if plan.kind == "none":
        return NoTeacher()
    if plan.kind == "virtual":
        assert plan.correct_probability is not None
        return Virtual(num_classes, plan.correct_probability)
    if plan.kind == "ema":
        assert plan.decay is not None
        return Ema(plan.decay)
    assert tapped, f"teacher={plan.kind} needs trained networks"
    return Ensemble(tapped) if plan.kind == "ensemble" else Frozen(tapped[0])


def teacher_of(recipe: Recipe, networks: Sequence[nn.Module], data: DistillationData) -> Teacher:
    """Make a recipe's teacher; a method that does not look at one runs without."""
    objective = recipe.objective()
    if not objective.needs_teacher:
        return NoTeacher()
    return teacher(recipe.teacher, networks, objective.layers("teacher"), data.num_classes)


def optimizer_and_schedule(recipe: Recipe) -> tuple[Any, Any]:
    """The partial constructors of a recipe's optimiser and learning-rate schedule."""
    made = []
    for name, node in (("optim.optimizer", recipe.optim.optimizer), ("optim.schedule", recipe.optim.schedule)):
        made.append(_instantiate(name, node))
        if not callable(made[-1]):
            raise ConfigError(f"`{name}` needs `_partial_: true`: its arguments follow when the network is known.")
    return made[0], made[1]


def device(trainer: TrainerConfig) -> torch.device:
    """Set the number of CPU threads and return the one device of a run, or of this one of its processes.

    Raises `ConfigError` if this machine does not have the device.
    """
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)
    own = parallel.own_device(trainer)
    try:
        return L.Fabric(
            accelerator=trainer.accelerator,
            devices=own,
            plugins=LightningEnvironment(),  # a run inside a SLURM job is no part of that job's tasks
        ).device
    except Exception as error:  # Lightning raises many types here; all of them mean the same to a user
        raise ConfigError(
            f"trainer.accelerator={trainer.accelerator} with trainer.devices={trainer.devices} is not available here "
            f"({error}). Use trainer.accelerator=auto trainer.devices=1: what this machine has."
        ) from error


def role_of(recipe: Recipe) -> str:
    return "teacher" if recipe.view.arm == "teacher" else "student"


def _instantiate(where: str, node: Node) -> Any:
    """Build what a node's `_target_` names.

    Raises `ConfigError` for a name that may not be called (`kd.trust`) or cannot be imported, an unknown or missing
    argument, or one that is refused.
    """
    parameters = _parameters(where, node)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for name in node:
        if name not in named and name not in trust.SPECIAL and not open_ended:
            raise ConfigError(
                f"Unknown key `{where}.{name}`.{nearest(name, named)} {node['_target_']} takes: {', '.join(named)}."
            )
    return attempt(where, lambda: trust.build(where, node))


def _parameters(where: str, node: Node) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of what a node's `_target_` names. Raises `ConfigError` if it may not be named."""
    return inspect.signature(trust.resolve(where, node.get("_target_"))).parameters


def attempt(where: str, make: Any) -> Any:
    """Return what `make` returns; a refusal of the configured values becomes a `ConfigError`."""
    try:
        return make()
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"`{where}` cannot be built as configured: {reason}") from error
