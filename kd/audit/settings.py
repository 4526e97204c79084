"""A run's settings beside its experiment's own: what was changed, and what was made shorter."""

import json
from collections.abc import Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd.cli import compose
from kd.files import ELSEWHERE, TRAINER_ELSEWHERE

Settings = dict[str, Any]  # a resolved configuration, as config.yaml holds it
#: what does not make two audits differ: the runs' seeds, places and words (another teacher.seed is another teacher)
ASIDE = (
    *(*ELSEWHERE, "seed", "data.root", "claim", "teacher.allow_weak"),
    *(f"trainer.{name}" for name in ("compile", *TRAINER_ELSEWHERE)),
)
#: a smaller number at one of these keys makes a shorter experiment (no limit is the longest)
LENGTHS = ("trainer.max_epochs", "teacher.max_epochs", "method.initial.epochs", "data.train_limit", "data.test_limit")
VAL = "data.val"  # a larger one leaves fewer images to train on
#: ways of running the same setup, and seeds: a verdict need not say them
SAME_SETUP = (
    *(f"trainer.{name}" for name in ("precision", "threads", "accelerator", "devices", "deterministic")),
    *("teacher.seed", "teacher.cache"),
)
TOLD = 3  # settings that a verdict names


def own_settings(experiment: str, overrides: Sequence[str] = ()) -> Settings | None:
    """The settings of conf/experiment/NAME.yaml as it stands; None if there is no such experiment here."""
    try:
        # not checked: an experiment may leave something to the user, a checkpoint's path say
        own = OmegaConf.to_container(compose([f"experiment={experiment}", *overrides]), resolve=True)
    except (HydraException, OmegaConfBaseException):
        return None
    assert isinstance(own, dict)
    return {str(name): value for name, value in own.items()}


def flat(settings: Settings, prefix: str = "") -> Settings:
    """Dotted keys and their values; an empty group counts as absent."""
    found: Settings = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def without_aside(settings: Settings) -> Settings:
    """The dotted settings that decide a result, of any seed."""
    return {
        name: value
        for name, value in flat(settings).items()
        if not any(name == aside or name.startswith(f"{aside}.") for aside in ASIDE)
        and (name, value) != ("fork", None)  # which config.yaml leaves away
    }


def changes(own: Settings, here: Settings) -> list[str]:
    """`key=value` for each setting that differs from the experiment's own."""
    before, after = without_aside(own), without_aside(here)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name}={_text(after.get(name))}" for name in names]


def _text(value: Any) -> str:
    """A value as the command line has it."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def setup(own: Settings, here: Settings) -> str | None:
    """What a verdict must name because the experiment's own setup was not what ran; None if it was."""
    shorter = _shorter(own, here)
    others = [change for change in changes(own, here) if change.partition("=")[0] not in (*shorter, *SAME_SETUP)]
    more = f" and {len(others) - TOLD} more" if len(others) > TOLD else ""
    words = ["on this shortened setup"] if shorter else []
    words += [f"with {', '.join(others[:TOLD])}{more}"] if others else []
    return " ".join(words) or None


def shortened(own: Settings, here: Settings) -> dict[str, dict[str, Any]] | None:
    """What is shorter than in the experiment's own settings: {key: {"own", "here"}}; None if nothing is."""
    found = _shorter(own, here)
    if found.get("teacher.max_epochs") == found.get("trainer.max_epochs"):
        found.pop("teacher.max_epochs", None)  # it follows the other
    return found or None


def _shorter(own: Settings, here: Settings) -> dict[str, dict[str, Any]]:
    before, after = _lengths(own), _lengths(here)
    found = {
        name: {"own": before[name], "here": after[name]}
        for name in LENGTHS
        if after[name] is not None and (before[name] is None or after[name] < before[name])
    }
    held_out = [values.get(VAL) for values in (flat(own), flat(here))]
    if _larger(*held_out):
        found[VAL] = dict(zip(("own", "here"), held_out, strict=True))
    return found


def _larger(own: int | float | None, here: int | float | None) -> bool:
    """Whether more images are held out: a number or a share of them, between which nothing is known."""
    if own is None or here is None or (own and here and (own < 1) != (here < 1)):
        return False
    return here > own


def _lengths(settings: Settings) -> Settings:
    values = flat(settings)
    lengths = {name: values.get(name) for name in LENGTHS}
    lengths["teacher.max_epochs"] = teacher_epochs(settings)
    return lengths


def teacher_epochs(settings: Settings) -> int | None:
    """The teacher's epochs, which are the student's unless said otherwise."""
    values = flat(settings)
    own: int | None = values.get("teacher.max_epochs")
    return values.get("trainer.max_epochs") if own is None else own


def in_short(here: Settings) -> Settings:
    """The settings that a reader of a result asks for first."""
    data, method, trainer, teacher = (here.get(name) or {} for name in ("data", "method", "trainer", "teacher"))
    return {
        "method": method.get("name"),
        "temperature": method.get("temperature"),
        "alpha": method.get("alpha"),
        "beta": method.get("beta"),
        "teacher": teacher.get("kind"),
        "epochs": trainer.get("max_epochs"),
        "teacher_epochs": teacher_epochs(here),
        "precision": trainer.get("precision"),
        "batch_size": data.get("batch_size"),
        "val": data.get("val"),
        "train_limit": data.get("train_limit"),
        "test_limit": data.get("test_limit"),
        "omit": data.get("omit"),
        "keep": data.get("keep"),
    }
