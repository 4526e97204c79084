"""Weights that were trained elsewhere: read without executing anything, and held against the network and the data."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kd.data import DistillationData
from kd.errors import StoreError
from kd.store import read_weights

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys under which public checkpoints keep the weights
WRAPPER_PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and DataParallel


def load_foreign(network: nn.Module, path: Path, data: DistillationData) -> list[str]:
    """Fill `network` with a file's weights; return what the file does not say and therefore was not checked.

    Raises `StoreError` if the file is missing, damaged or a pickle with code in it, or if its layers, number of
    classes, class order or normalisation are not this run's.
    """
    if not path.is_file():
        raise StoreError(f"teacher.path={path}: there is no such file.")
    if path.suffix == ".safetensors":
        state, described = read_weights(path), _metadata(path)
    else:
        state, described = _read_pickle(path), {}
    state = _without_wrapper_prefix(state, network)
    _check_layers(network, state, path)
    unsaid = []
    for name, ours in (("class_names", data.class_names), ("mean", data.mean), ("std", data.std)):
        theirs = described.get(name)
        if theirs is None:
            unsaid.append(name)
        elif not _same(theirs, ours):
            what = "classes (in this order)" if name == "class_names" else f"normalisation {name}"
            raise StoreError(
                f"{path} was trained for other {what}: {theirs}, but this run has {ours}. "
                "Use the data that the network was trained for."
            )
    network.load_state_dict(state)
    return unsaid


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StoreError(
            f"{path} holds more than weights, or is damaged, and was not loaded: unpickling it could execute code. "
            "Save the network's state_dict alone, best as .safetensors (safetensors.torch.save_file)."
        ) from error
    except Exception as error:  # the unpickler raises any type on damaged bytes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise StoreError(f"{path} is damaged or no file of weights: {reason}.") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise StoreError(f"{path} holds no state_dict (a mapping from names to tensors).")
    return {str(name): value for name, value in content.items()}


def _without_wrapper_prefix(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The names as the network has them, where a wrapper put its own before all of them."""
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state) and not all(name in state for name in network.state_dict()):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _metadata(path: Path) -> dict[str, Any]:
    """What a file written by this project says about its network."""
    try:
        with safe_open(path, "pt") as file:
            return {name: json.loads(value) for name, value in (file.metadata() or {}).items() if name != "format"}
    except (SafetensorError, ValueError):
        return {}


def _check_layers(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    wanted = network.state_dict()
    absent, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if absent or extra:
        raise StoreError(
            f"{path} holds another architecture than {type(network).__name__}: "
            f"{_some('it lacks', absent)}{_some('it also has', extra)}choose its network with model@teacher.model=NAME."
        )
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise StoreError(
                f"{path} does not fit {type(network).__name__}: {name} has shape {tuple(value.shape)}, expected "
                f"{tuple(wanted[name].shape)} (the size of a last layer is the number of classes)."
            )


def _some(what: str, names: list[str]) -> str:
    return f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}; " if names else ""


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, list) and isinstance(ours, list) and theirs and isinstance(theirs[0], float):
        return len(theirs) == len(ours) and all(abs(a - b) < 1e-3 for a, b in zip(theirs, ours, strict=True))
    return bool(theirs == ours)
