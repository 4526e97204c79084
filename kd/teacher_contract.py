"""A teacher that knows no more than guessing is questioned before it teaches."""

import torch

from kd import build
from kd.chance import guessing, near_chance
from kd.data import DistillationData, View
from kd.errors import ConfigError
from kd.evaluate import predictions
from kd.recipe import File, Plan, Recipe
from kd.schema import TeacherConfig
from kd.store import Entry
from kd.taps import Tapped
from kd.teachers import Frozen


def question_files(plan: Plan, data: DistillationData, device: torch.device, settings: TeacherConfig) -> None:
    """Evaluate teachers that were trained elsewhere on the validation images. Raises `ConfigError` for a weak one."""
    if settings.allow_weak:
        return
    view = View("teacher", settings.seed, "none")
    for member in plan.teacher.members:
        if isinstance(member, File) and (images := data.use(view).images_to_validate()):
            network = Frozen(Tapped(build.foreign_network(member, data)))
            logits, target = predictions(network, data, data.use(view).val_dataloader(), device)
            _question((logits.argmax(1) == target).double().mean().item(), images, data, str(member.path))


def question(recipe: Recipe, trained: Entry, data: DistillationData, settings: TeacherConfig) -> None:
    """Raise `ConfigError` for a teacher whose validation accuracy is that of guessing, unless that is intended.

    Nothing is known of one without validation images; a random teacher, a control, is meant to be what it is.
    """
    validated = trained.meta.get("val")
    if settings.allow_weak or recipe.view.arm != "teacher" or recipe.is_initial or not recipe.epochs or not validated:
        return
    if images := data.use(recipe.view).images_to_validate():
        _question(validated["accuracy"], images, data, recipe.label)


def _question(accuracy: float, images: int, data: DistillationData, which: str) -> None:
    chance = guessing(data, "teacher")
    if near_chance(accuracy, images, chance):
        raise ConfigError(
            f"Teacher validation accuracy {accuracy:.1%} ({which}, on {images:,} images), and guessing has "
            f"{chance:.1%}: intended? Then set teacher.allow_weak=true. Else train it for longer "
            "(teacher.max_epochs) or with another learning rate, choose another network or file, or, if the images are "
            "few, ask more of them (data.val)."
        )
