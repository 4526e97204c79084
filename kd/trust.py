"""Which code a configuration may name: `_target_` calls what it names, and a configuration may come from anybody.

The name is held against the list before anything is imported, and what it leads to once more afterwards: a path may
walk out of a package again (`kd.build.torch.hub.load`). Whoever has code of their own names its package in the
environment variable KD_TRUST; no file can do that.
"""

import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kd.errors import ConfigError

TRUST = "KD_TRUST"
#: packages whose networks, terms, optimisers, schedules, datasets and transforms may be named
PARTS = (
    "kd.data", "kd.losses", "kd.nets", "kd.optim",
    "torch.nn", "torch.optim", "torchvision.models", "torchvision.transforms", "timm",
)  # fmt: skip
#: modules of ours all of whose public functions build a part
BUILDERS = ("kd.nets.by_name", "kd.optim")
#: arguments of timm's functions that name files or servers to read weights from
OF_TIMM = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
SPECIAL = ("_target_", "_partial_", "_args_")
NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)  # no private or special names on the way


def trusted() -> tuple[str, ...]:
    """The packages that the user vouches for."""
    return tuple(filter(None, (name.strip() for name in os.environ.get(TRUST, "").split(","))))


def check_name(where: str, target: Any) -> str:
    """Return what a `_target_` names, nothing imported yet. Raises `ConfigError` for a name that is not allowed."""
    if not isinstance(target, str):
        raise ConfigError(f"`{where}._target_` must name a class or function, but is {target!r}.")
    if not NAME.fullmatch(target):
        raise ConfigError(
            f"`{where}._target_` must name a class or function, as package.module.Name without private names, but is "
            f"{target!r:.200}."
        )
    if not inside(target, (*PARTS, *trusted())):
        raise ConfigError(refusal(where, target, f"is not in a package that a configuration may name: it {WHY}"))
    return target


def check_names(content: Any, where: str = "") -> None:
    """Hold every `_target_` in a configuration, however deep, against the list. Raises `ConfigError`."""
    for place, node in nodes(content, where):
        if (target := node.get("_target_")) not in (None, "???"):
            check_name(place, target)


def resolve(where: str, target: Any) -> Callable[..., Any]:
    """Import and return the class or function that a `_target_` names.

    Raises `ConfigError` for one that is not allowed, cannot be imported, lies outside of the package that its name
    begins with, or builds no part of a run.
    """
    name = check_name(where, target)
    try:
        found = _imported(name)
    except Exception as error:  # whatever importing the user's own module raises
        raise ConfigError(f"Cannot import `{where}._target_`={target!r}: {error}") from error
    home = str(getattr(found, "__module__", None))
    if inside(home, trusted()) and callable(found):
        return found  # type: ignore[no-any-return]
    if not inside(home, PARTS):
        raise ConfigError(refusal(where, name, f"leads out of its package, to {home}"))
    if not _is_part(found):
        raise ConfigError(
            f"`{where}._target_`={name!r} is no network, loss term, optimiser, schedule, dataset or transform."
        )
    return found  # type: ignore[no-any-return]


def build(where: str, node: Any) -> Any:
    """Build what a plain configuration names, from the inside out; what names nothing stays as it is.

    `_partial_: true` gives a constructor whose remaining arguments follow, `_args_` has positional ones. As Hydra's
    `instantiate`, without its interpolations, which could put a `_target_` where none was when it was checked.
    """
    if isinstance(node, list | tuple):
        return [build(where, one) for one in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: build(f"{where}.{key}", value) for key, value in node.items()}
    make = resolve(where, node["_target_"])
    for key in node:
        if str(key).startswith("_") and key not in SPECIAL:
            raise ConfigError(f"Unknown key `{where}.{key}`. Beside arguments there are: {', '.join(SPECIAL)}.")
    positional = build(where, node.get("_args_", []))
    given = {key: build(f"{where}.{key}", value) for key, value in node.items() if key not in SPECIAL}
    if str(make.__module__).startswith("timm."):
        _refuse_files(where, make, positional, given)
    if node.get("_partial_"):
        from functools import partial

        return partial(make, *positional, **given)
    return make(*positional, **given)


WHY = "would run code that nobody here vouches for"


def _refuse_files(where: str, make: Callable[..., Any], positional: Sequence[Any], given: Mapping[str, Any]) -> None:
    """Weights from elsewhere are read by us, who check the file first; timm's first versions unpickle it."""
    if inspect.isclass(make):
        return  # a network as it is: only timm's functions fill it
    named = sorted(given.keys() & set(OF_TIMM))
    if named or len(positional) > 1 or ":" in str([*positional, given.get("model_name")][0]):
        what = f"`{where}.{named[0]}`" if named else f"`{where}`"
        raise ConfigError(
            f"{what} names weights for timm to read; weights from a file are read with teacher.path=FILE."
        )


def refusal(where: str, target: Any, why: str, package: str = "") -> str:
    package = (package or str(target)).partition(".")[0]
    own = f" If it is code of yours, or you have read it, say so: {TRUST}={package} python -m kd.run ..."
    known = inside(package, tuple(part.partition(".")[0] for part in PARTS))
    key, allowed = (
        (where, "") if where == "hydra.searchpath" else (f"{where}._target_", f" Allowed: {', '.join(PARTS)}.")
    )
    return f"`{key}`={target!r:.200} {why}.{allowed}{'' if known else own}"


def inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def nodes(content: Any, where: str) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every mapping in a configuration, with its dotted place."""
    if isinstance(content, Mapping):
        yield where, content
        for key, value in content.items():
            yield from nodes(value, f"{where}.{key}".lstrip("."))
    elif isinstance(content, list | tuple):
        for value in content:
            yield from nodes(value, where)


def _imported(name: str) -> Any:
    """Import the longest part of a name that is a module, and look up the rest in it."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if length == 1 or not module.startswith(str(error.name)):
                raise  # a module that this one needs is missing
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(f"there is no module {name!r}")


def _is_part(found: Any) -> bool:
    """Whether a class or function of an allowed package builds a part of a run, and does nothing else."""
    if inspect.isclass(found):
        import lightning as L
        from torch import nn
        from torch.optim import Optimizer
        from torch.optim.lr_scheduler import LRScheduler

        return issubclass(found, nn.Module | Optimizer | LRScheduler | L.LightningDataModule) or (
            found.__module__.startswith("torchvision.transforms.")
        )
    name = getattr(found, "__name__", "")
    if found.__module__ in BUILDERS:
        return inspect.isfunction(found)
    if found.__module__.startswith("torchvision.models."):
        from torchvision import models

        return name in models.list_models(module=models) and getattr(models, name, None) is found
    if found.__module__.startswith("timm."):
        import timm

        return found is timm.create_model or (timm.is_model(name) and timm.model_entrypoint(name) is found)
    return False
