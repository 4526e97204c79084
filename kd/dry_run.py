"""Every arm is tried on one batch, untrained, so that what cannot work is said before anything is trained."""

import torch
from torch import Tensor, nn

from kd import build
from kd.data import DistillationData
from kd.errors import ConfigError, UserError
from kd.global_norm import refuse_unknown_norms
from kd.losses.objective import Objective
from kd.optim import refuse_several_losses
from kd.recipe import File, Plan, Recipe
from kd.taps import Tapped
from kd.teacher_cache import refuse_live, refuse_without_teacher
from kd.types import Batch


def dry_run(plan: Plan, data: DistillationData, processes: int = 1, cache: str = "auto") -> None:
    """Send two images through every arm, untrained: shapes, taps, terms, optimiser, schedule fail here or nowhere.

    `processes`: how many will train each network together. `cache`: teacher.cache.
    """
    refuse_without_teacher(plan.student, cache)
    first_stage: dict[str, Tensor] = {}  # a recipe's own comes right before it
    for recipe in plan.recipes():
        loader = data.use(recipe.view).train_dataloader()
        batch = Batch(*(part[:2] for part in data.on_device(next(iter(loader)), torch.device("cpu"))))
        described = recipe.objective()
        _refuse_wrong_teacher(recipe, described)
        refuse_live(recipe, data, cache)
        if recipe.epochs:  # an untrained network has no schedules
            _refuse_late_start(recipe, described)
        _try_network(
            Tapped(build.network(recipe.model, data, build.role_of(recipe))), batch, data, build.role_of(recipe)
        )
        members = [_untrained(member, data) for member in recipe.teacher.members]
        for member in members:
            _try_network(Tapped(member), batch, data, "teacher")
        taught_by = build.teacher_of(recipe, members, data)
        tapped, objective, _ = build.student(recipe, data, taught_by)
        if recipe.is_initial:
            first_stage = objective.terms.state_dict()
        else:
            objective.carry_over(first_stage if recipe.initial else {})
        _refuse_single_image_batch(nn.ModuleList([tapped, objective]), recipe)
        if processes > 1 and recipe.epochs:
            _refuse_small_shares(data, len(loader), processes)
            refuse_unknown_norms(tapped.network, build.role_of(recipe))
            refuse_unknown_norms(objective.terms, "method")
        with torch.no_grad():
            objective.eval()(tapped.eval()(batch.image), taught_by(batch), batch)
        make_optimizer, make_schedule = build.optimizer_and_schedule(recipe)
        build.attempt("optim.optimizer", lambda: make_optimizer(tapped.parameters()))  # noqa: B023
        optimizer = make_optimizer(tapped.parameters())
        refuse_several_losses(optimizer)
        if recipe.epochs:
            build.attempt("optim.schedule", lambda: make_schedule(optimizer, data.steps_per_epoch(), recipe.epochs))  # noqa: B023


def _refuse_wrong_teacher(recipe: Recipe, objective: Objective) -> None:
    kind, name = recipe.teacher.kind, recipe.method["name"]
    if objective.needs_teacher and kind == "none":
        raise ConfigError(
            f"Method {name!r} learns from a teacher, but this run has teacher=none. "
            "Choose teacher=trained, self, checkpoint, ensemble, ema or virtual."
        )
    if kind == "ema" and not objective.needs_teacher:
        raise ConfigError(
            f"Method {name!r} does not learn from a teacher's output, so that teacher=ema would have no effect. "
            "Choose teacher=none."
        )
    if kind == "ema" and not objective.needs_student:
        raise ConfigError(
            f"The first stage of method {name!r} learns from a trained teacher, which teacher=ema is not yet. "
            "Choose teacher=trained, self or checkpoint."
        )


def _refuse_late_start(recipe: Recipe, objective: Objective) -> None:
    for name, schedule in objective.schedules.items():
        if (last := max(schedule.turns())) >= recipe.epochs:
            raise ConfigError(
                f"The schedule of `{objective.where}.{name}` has a change at epoch {last} (counted from 0), but there "
                f"are {recipe.epochs} epochs."
            )


def _untrained(member: Recipe | File, data: DistillationData) -> nn.Module:
    """A teacher's member for the dry run; a file is read for good, so that a wrong one is found now."""
    return (
        build.foreign_network(member, data)
        if isinstance(member, File)
        else build.network(member.model, data, "teacher")
    )


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


def _refuse_small_shares(data: DistillationData, batches: int, processes: int) -> None:
    """Every process must have an image of every batch, and one to validate on."""
    first, last = data.images_in_batch(0), data.images_in_batch(batches - 1)
    if last < processes:
        which = "a batch" if batches == 1 or first < processes else "the last batch"
        raise ConfigError(
            f"{processes} processes share every batch of {first} images, but {which} has only {last}. "
            "Change data.batch_size or data.train_limit, or train on fewer devices (trainer.devices)."
        )
    validation = data.images_to_validate()
    if 0 < validation < processes:
        raise ConfigError(
            f"{processes} processes share the validation images, but there are only {validation}. Set data.val=0 or "
            f"to at least {processes}, or train on fewer devices (trainer.devices)."
        )
