"""The only place that turns configuration into objects, and that tries them on one batch before anything is trained."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from hydra.utils import get_object, instantiate
from torch import Tensor, nn

from kd.check import nearest
from kd.data import DistillationData, ForeignData
from kd.errors import ConfigError, UserError
from kd.foreign_weights import load_foreign
from kd.losses.objective import Objective
from kd.losses.term import Setting
from kd.recipe import File, Node, Plan, Recipe, TeacherPlan
from kd.schema import RunConfig, TrainerConfig
from kd.taps import Tapped
from kd.teachers import Ema, Ensemble, Frozen, NoTeacher, Teacher, Virtual
from kd.types import Batch


def data(config: RunConfig) -> DistillationData:
    """Build and read the dataset. Raises `ConfigError` or `DataError`."""
    built = _instantiate("data", config.data)
    if isinstance(built, DistillationData):
        return built
    if isinstance(built, L.LightningDataModule):
        return ForeignData(built, config.data)
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
    """Complete a network's configuration with those of a dataset's facts that its class or function takes."""
    facts = {"num_classes": data.num_classes, "image_shape": list(data.image_shape)}
    parameters = _parameters("model", model)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = {k: v for k, v in facts.items() if k in parameters or (open_ended and k == "num_classes")}
    return {**taken, **model}


def foreign_network(file: File, data: DistillationData) -> nn.Module:
    """Build a network and fill it with weights trained elsewhere. Raises `StoreError` if they do not fit."""
    built = network(file.model, data, "teacher")
    load_foreign(built, file.path, data)
    return built


def student(recipe: Recipe, data: DistillationData, taught_by: Teacher) -> tuple[Tapped, Objective, Node]:
    """Build a recipe's network, its objective with all its parts, and the network's configuration.

    Everything is initialised from the recipe's seed alone. The network comes first, so that baseline and student start
    from the same weights whatever their objectives draw.
    """
    model, objective = recipe.model, recipe.objective()
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
    image = torch.zeros(2, *data.image_shape)

    torch.manual_seed(recipe.seed)
    tapped = Tapped(network(model, data, _role(recipe)), layers, owner="student")
    setting = sampled(tapped, taught_by, image, **facts)
    if (wrapped := objective.wrap(bound(model, data), setting)) is not None:
        if recipe.label != "student":
            raise ConfigError(
                f"Method {recipe.method['name']!r} gives the student the teacher's classifier. Such a network cannot "
                "teach a next one: set teacher.generations=1."
            )
        if recipe.initial:
            raise ConfigError("A method that replaces the student's network cannot have an `initial` stage.")
        model = wrapped
        torch.manual_seed(recipe.seed)
        tapped = Tapped(network(model, data, _role(recipe)), owner="student")
        setting = sampled(tapped, taught_by, image, **facts)
    objective.build(setting)
    return tapped, objective, model


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


def optimizer_and_schedule(recipe: Recipe) -> tuple[Any, Any]:
    """The partial constructors of a recipe's optimiser and learning-rate schedule."""
    made = []
    for name, node in (("optim.optimizer", recipe.optim.optimizer), ("optim.schedule", recipe.optim.schedule)):
        made.append(_instantiate(name, node))
        if not callable(made[-1]):
            raise ConfigError(f"`{name}` needs `_partial_: true`: its arguments follow when the network is known.")
    return made[0], made[1]


def device(trainer: TrainerConfig) -> torch.device:
    """Set the number of CPU threads and return the one device of a run.

    Raises `ConfigError` if this machine does not have the device.
    """
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)
    try:
        return L.Fabric(accelerator=trainer.accelerator, devices=trainer.devices).device
    except Exception as error:  # Lightning raises many types here; all of them mean the same to a user
        raise ConfigError(
            f"trainer.accelerator={trainer.accelerator} with trainer.devices={trainer.devices} is not available here: "
            f"{error}"
        ) from error


def dry_run(plan: Plan, data: DistillationData) -> None:
    """Send two images through every arm, untrained: shapes, taps, terms, optimiser, schedule fail here or nowhere."""
    for recipe in plan.recipes():
        loader = data.use(recipe.view).train_dataloader()
        batch = Batch(*(part[:2] for part in data.on_device(next(iter(loader)), torch.device("cpu"))))
        described = recipe.objective()
        if described.needs_teacher and recipe.teacher.kind == "none":
            raise ConfigError(
                f"Method {recipe.method['name']!r} learns from a teacher, but this run has teacher=none. "
                "Choose teacher=trained, self, checkpoint, ensemble, ema or virtual."
            )
        _try_network(Tapped(network(recipe.model, data, _role(recipe))), batch, data, _role(recipe))
        members = [_untrained(member, data) for member in recipe.teacher.members]
        for member in members:
            _try_network(Tapped(member), batch, data, "teacher")
        taught_by = teacher(recipe.teacher, members, described.layers("teacher"), data.num_classes)
        tapped, objective, _ = student(recipe, data, taught_by)
        _refuse_single_image_batch(nn.ModuleList([tapped, objective]), recipe)
        with torch.no_grad():
            objective.eval()(tapped.eval()(batch.image), taught_by(batch), batch)
        make_optimizer, make_schedule = optimizer_and_schedule(recipe)
        _try("optim.optimizer", lambda: make_optimizer(tapped.parameters()))  # noqa: B023
        optimizer = make_optimizer(tapped.parameters())
        _try("optim.schedule", lambda: make_schedule(optimizer, len(loader), recipe.epochs))  # noqa: B023


def _untrained(member: Recipe | File, data: DistillationData) -> nn.Module:
    """A teacher's member for the dry run; a file is read for good, so that a wrong one is found now."""
    return foreign_network(member, data) if isinstance(member, File) else network(member.model, data, "teacher")


def _try_network(tapped: Tapped, batch: Batch, data: DistillationData, role: str) -> None:
    shape = tuple(batch.image.shape[1:])
    name = type(tapped.network).__name__
    try:
        with torch.no_grad():
            logits = tapped.eval()(batch.image).logits
    except UserError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"The {role}'s network {name} does not fit images of shape {shape} (C, H, W): {reason} "
            f"Choose another network with model@{'student' if role == 'student' else 'teacher.model'}=NAME."
        ) from error
    if tuple(logits.shape) != (len(batch.image), data.num_classes):
        raise ConfigError(
            f"The {role}'s network {name} gives outputs of shape {tuple(logits.shape)} for {len(batch.image)} images; "
            f"expected ({len(batch.image)}, {data.num_classes}): one logit per class."
        )


def _refuse_single_image_batch(trained: nn.Module, recipe: Recipe) -> None:
    images, size = recipe.data.get("images"), recipe.data.get("batch_size")
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trained.modules())
    if normalised and images and size and images % size == 1:
        raise ConfigError(
            f"With {images} images and data.batch_size={size} the last batch holds a single image, which batch "
            "normalisation cannot train on. Change data.batch_size, or data.train_limit by one."
        )


def _role(recipe: Recipe) -> str:
    return "teacher" if recipe.view.arm == "teacher" else "student"


def _instantiate(where: str, node: Node) -> Any:
    """Build what a node's `_target_` names.

    Raises `ConfigError` for a name that cannot be imported, an unknown or missing argument, or one that is refused.
    """
    parameters = _parameters(where, node)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for name in node:
        if name not in named and not name.startswith("_") and not open_ended:
            raise ConfigError(
                f"Unknown key `{where}.{name}`.{nearest(name, named)} {node['_target_']} takes: {', '.join(named)}."
            )
    return _try(where, lambda: instantiate(node, _convert_="all"))


def _parameters(where: str, node: Node) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of what a node's `_target_` names. Raises `ConfigError` if it cannot be imported."""
    target = node.get("_target_")
    if not isinstance(target, str):
        raise ConfigError(f"`{where}._target_` must name a class or function, but is {target!r}.")
    try:
        return inspect.signature(get_object(target)).parameters
    except Exception as error:  # whatever importing the user's own module raises
        raise ConfigError(f"Cannot import `{where}._target_`={target!r}: {error}") from error


def _try(where: str, make: Any) -> Any:
    """Return what `make` returns; a refusal of the configured values becomes a `ConfigError`."""
    try:
        return make()
    except Exception as error:
        cause = error.__cause__ or error  # Hydra wraps what the target raised
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, TypeError | ValueError | AttributeError | KeyError | AssertionError):
            raise ConfigError(f"`{where}` cannot be built as configured: {str(cause).splitlines()[0]}") from error
        raise
