"""`teacher.cache`: whether a teacher gives its logits anew in every step, or they are kept for every later run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kd.cached_teacher import Cached
from kd.data import DistillationData
from kd.data.resident import ResidentData
from kd.errors import ConfigError
from kd.files import CACHE
from kd.nets.cost import macs
from kd.recipe import Recipe
from kd.rules import UNCACHED
from kd.teachers import Ensemble, Frozen, Teacher

WORTHWHILE_MACS = 100_000  # a forward pass of fewer takes no longer than finding what it has given


@dataclass(frozen=True)
class Caching:
    """What a run asks of the cache. mode: auto, off or only."""

    mode: str
    store: Path

    def around(self, teacher: Teacher, recipe: Recipe, data: DistillationData, say: Callable[[str], None]) -> Teacher:
        """The teacher, behind a cache if the run can and wants to use one; says why not."""
        if self.mode == "off" or not isinstance(teacher, Frozen | Ensemble):
            return teacher
        reason = why_live(recipe, data)
        if reason is None and self.mode == "auto":
            cost = sum(macs(network, data.image_shape) for network in teacher.networks)
            if cost < WORTHWHILE_MACS:
                reason = f"its {cost:,} multiply-accumulates cost no more than finding what they gave"
        if reason is not None:
            _refuse(reason, self.mode)
            say(f"teacher live: {reason}")
            return teacher
        assert isinstance(data, ResidentData), "no other data number their views"
        return Cached(
            teacher,
            data,
            models=[member.model for member in recipe.teacher.members],
            epochs=recipe.epochs,
            root=self.store / CACHE,
            insists=self.mode == "only",
            say=say,
        )


def why_live(recipe: Recipe, data: DistillationData) -> str | None:
    """Why the teacher of a recipe must run in every step; None if its logits can be kept."""
    if recipe.teacher.kind in UNCACHED:
        return f"teacher={recipe.teacher.kind}: {UNCACHED[recipe.teacher.kind]}"
    if layers := recipe.objective().layers("teacher"):
        return (
            f"method {recipe.method['name']!r} reads layers of the teacher ({', '.join(layers)}): only logits are kept"
        )
    try:
        data.views()
    except ConfigError as error:
        return str(error)
    return None


def refuse_without_teacher(student: Recipe, mode: str) -> None:
    """Raise `ConfigError` if a run insists on a cache for a student that has no teacher."""
    if not student.objective().needs_teacher:
        _refuse(f"method {student.method['name']!r} looks at no teacher's logits", mode)


def refuse_live(recipe: Recipe, data: DistillationData, mode: str) -> None:
    """Raise `ConfigError` if a run insists on a cache that it cannot have."""
    if recipe.objective().needs_teacher and (reason := why_live(recipe, data)):
        _refuse(reason, mode)


def _refuse(reason: str, mode: str) -> None:
    if mode == "only":
        raise ConfigError(f"teacher.cache=only is not possible here: {reason}. Use teacher.cache=auto or off.")
