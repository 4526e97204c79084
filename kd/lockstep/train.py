"""Train the networks of several recipes together, and leave each in the store as if it had been trained alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from kd import checkpoints
from kd.cached_teacher import Cached
from kd.callbacks import Speed, WarnAtChance
from kd.chance import guessing
from kd.checkpoints import CheckedIO, Found
from kd.curves import TidyCsv
from kd.data import ImageData
from kd.errors import StoreError
from kd.fit import fit
from kd.lockstep.choose import Choice
from kd.lockstep.module import Lockstep, Member
from kd.recipe import Recipe
from kd.saving import Save, checkpoint_size, refuse_other_calls
from kd.seals import Unchanged
from kd.signals import Signals
from kd.store import Entry, Store
from kd.train import Trainings

CHECKPOINT = "together.ckpt"


@dataclass
class Trained:
    """What came of a group: its networks by key, why the others have none, and how they were trained."""

    entries: dict[str, Entry] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    choice: Choice | None = None
    seconds: float = 0.0


def train_together(trainings: Trainings, recipes: Sequence[Recipe], way: str = "auto") -> Trained:
    """Train the networks of recipes that `kd.sweep.together.shared` finds alike, and store them.

    Those that are in the store already, or are being trained by another run, are left alone, and with fewer than two
    there is nothing to do together. A group that was cut off continues at the step of its last checkpoint, whatever is
    left of it. Each network gets its share of the group's time as `train_s`. Raises KeyboardInterrupt on Ctrl-C.
    """
    done = Trained()
    with ExitStack() as held:
        mine = []
        for recipe in {recipe.key: recipe for recipe in recipes}.values():
            if found := trainings.store.get(recipe.key):
                done.entries[recipe.key] = found
            elif not held.enter_context(_free(trainings.store, recipe.key)):
                done.left[recipe.key] = "another run is training it"
            elif found := trainings.store.get(recipe.key):  # the other run has just ended
                done.entries[recipe.key] = found
            else:
                mine.append(recipe)
        if not mine or (len(mine) < 2 and not checkpoints.begun(trainings.folder / CHECKPOINT)):
            done.left |= {recipe.key: "no other student is left to train it with" for recipe in mine}
            return done
        _train(trainings, mine, way, done)
    return done


def _train(trainings: Trainings, recipes: Sequence[Recipe], way: str, done: Trained) -> None:
    say = _sayer(trainings)
    checkpoint = trainings.folder / CHECKPOINT
    trainings.folder.mkdir(parents=True, exist_ok=True)
    members, module = _group(trainings, recipes, way)
    settings, data = trainings.settings, trainings.data.use(recipes[0].view)
    assert isinstance(data, ImageData), "only their batches are known to be the same for all students"
    found = _resumed(checkpoint, members, say)
    for member in members:
        member.curves.resume(found.epochs if found else 0)
    if found:
        refuse_other_calls(found, settings.steps_per_call)
        data.begin_at(found.epochs, found.batches)
        say(f"continuing after {found.describe(recipes[0].epochs)}")
    else:
        checkpoints.refuse_full_disk(trainings.folder, sum(checkpoint_size(member.module) for member in members))
    speed = Speed()
    save = Save(
        checkpoint, settings.checkpoint_minutes, Signals(), within_epochs=True, steps_per_call=settings.steps_per_call
    )
    fit(
        module, recipes[0], data, settings, trainings.team,
        callbacks=[speed, Progress(say, speed), Unchanged(), *trainings.watchers], loggers=[],
        save=save, checkpoint=found.path if found else None,
    )  # fmt: skip
    done.choice, done.seconds = module.choice, speed.elapsed_s()
    if isinstance(module.teacher, Cached) and (summary := module.teacher.summary(done.seconds)):
        say(summary)
    share = Share(speed, done.seconds, module.students)
    note = {"students": module.students, "way": module.taken}
    for member in members:
        if member.failure:
            done.left[member.recipe.key] = member.failure
        else:
            member.best.restore(member.module)
            meta = trainings.meta(member.recipe, member.model, member.best, share) | {"together": note}
            done.entries[member.recipe.key] = trainings.put(member.recipe, member.module, meta, member.curves.path)
    for member in members:
        member.curves.path.unlink(missing_ok=True)
    checkpoints.remove(checkpoint)


def _group(trainings: Trainings, recipes: Sequence[Recipe], way: str) -> tuple[list[Member], Lockstep]:
    teacher, members, data = None, [], trainings.data
    for recipe in recipes:
        module, model = trainings.module(recipe, teacher)
        teacher = module.teacher
        say, images = _sayer(trainings, module.objective.describe()), data.counts()["val"]
        at_chance = WarnAtChance(say, guessing(data, recipe.view.arm), images) if images else None
        curves = TidyCsv(trainings.folder / f"{recipe.key}.csv", recipe.label)
        members.append(Member(recipe, module, model, curves, at_chance))
    assert teacher is not None
    return members, Lockstep(members, teacher, way, _sayer(trainings))


def _resumed(checkpoint: Path, members: Sequence[Member], say: Callable[[str], None]) -> Found | None:
    """The newest whole checkpoint of a group that was cut off; None if there is none, or not of all these students."""
    found = checkpoints.find(checkpoint, say)
    if found is None:
        return None
    try:
        known = set(CheckedIO().load_checkpoint(found.path)["members"])
    except (KeyError, TypeError) as error:
        raise StoreError(f"{found.path} is no checkpoint of a group. Move it away to start anew.") from error
    if {member.recipe.key for member in members} <= known:
        return found
    say(f"starting anew: {found.path} is of other students")
    return None


class Share(Speed):
    """One student's share of the time of its group."""

    def __init__(self, whole: Speed, elapsed_s: float, students: int) -> None:
        super().__init__()
        self.seconds, self.images = whole.seconds / students, whole.images
        self._before_s = elapsed_s / students


class Progress(Callback):
    """A line per epoch over all students of a group."""

    def __init__(self, say: Callable[[str], None], speed: Speed) -> None:
        self.say, self.speed = say, speed

    def on_train_epoch_end(self, trainer: L.Trainer, module: Lockstep) -> None:  # type: ignore[override]
        means = [member.module.epoch_means for member in module.active]
        if not means:
            return
        validated = "val" in means[0]
        accuracy = f"  val accuracy {spread([one['val']['accuracy'] for one in means])}" if validated else ""
        self.say(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            f"  loss {spread([one['train']['loss'] for one in means])}{accuracy}"
            f"  {self.speed.images_per_s() * len(means):,.0f} images/s of all students"
        )


@contextmanager
def _free(store: Store, key: str) -> Iterator[bool]:
    """Hold a network's lock if nobody else does, and say whether that is so."""

    def give_up() -> None:
        raise _TakenError

    with ExitStack() as held:
        try:
            held.enter_context(store.lock(key, on_wait=give_up))
            is_free = True
        except _TakenError:
            is_free = False
        yield is_free


class _TakenError(Exception):
    """Another run holds a network's lock."""


def _sayer(trainings: Trainings, which: str = "students") -> Callable[[str], None]:
    def say(text: str) -> None:
        trainings.console.print(f"{which}  {text}", highlight=False, markup=False, soft_wrap=True)

    return say


def spread(values: Sequence[float]) -> str:
    """`0.412`, or `0.412 to 0.987` for values that differ."""
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    return low if low == high else f"{low} to {high}"
