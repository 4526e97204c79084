"""Weights that were trained elsewhere: read without executing anything, and held against the network and the data."""

import json
import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.data import DistillationData
from kd.errors import StoreError
from kd.files import STUDENT
from kd.store import DESCRIBED, read_weights
from kd.weight_files import check_torch_file, read_header

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # keys under which public checkpoints keep the weights
WRAPPER_PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and DataParallel


def load_foreign(network: nn.Module, path: Path, data: DistillationData) -> list[str]:
    """Fill `network` with a file's weights; return what the file does not say and therefore was not checked.

    Raises `StoreError` if the file is missing, damaged or a pickle with code in it, or if its layers, number of
    classes, class order or normalisation are not this run's.
    """
    if path.is_dir():
        raise StoreError(f"teacher.path={path} is a folder. Name a file: of a run here, {path / STUDENT}.")
    if not path.is_file():
        raise StoreError(f"teacher.path={path}: there is no such file.")
    if path.suffix == ".safetensors":
        state, described = read_weights(path), _metadata(path)
    else:
        state, described = _read_pickle(path)
    state = _without_wrapper_prefix(state, network)
    check_layers(network, state, path, "choose its network with model@teacher.model=NAME")
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


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a `.pt` file, and what it says about their network beside them."""
    described: dict[str, Any] = {}
    check_torch_file(path)
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
            described |= _said_beside(content)
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise StoreError(f"{path} holds no state_dict (a mapping from names to tensors).")
    return {str(name): value for name, value in content.items()}, described


def _said_beside(content: Mapping[Any, Any]) -> dict[str, Any]:
    """The classes and the normalisation under the names that public training scripts give them."""
    found = {name: content[name] for name in ("class_names", "mean", "std") if isinstance(content.get(name), list)}
    if isinstance(content.get("classes"), list):
        found.setdefault("class_names", content["classes"])
    numbers = content.get("class_to_idx")
    if isinstance(numbers, dict) and all(isinstance(number, int) for number in numbers.values()):
        found.setdefault("class_names", sorted(numbers, key=numbers.__getitem__))
    return found


def _without_wrapper_prefix(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The names as the network has them, where a wrapper put its own before all of them."""
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state) and not all(name in state for name in network.state_dict()):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _metadata(path: Path) -> dict[str, Any]:
    """What a file written by this project says about its network; a remark that is no JSON is somebody else's."""
    found = {}
    for name, value in read_header(path)["__metadata__"].items():
        with suppress(ValueError, RecursionError):
            found[name] = json.loads(value)
    ours = found.get(DESCRIBED)
    return ours if isinstance(ours, dict) else found  # without it: an earlier version's, one name for each


def check_layers(network: nn.Module, state: Mapping[str, Tensor], path: Path, advice: str) -> None:
    """Raise `StoreError` unless a file's state is one of the network, finite and plain. `advice`: how to choose it."""
    wanted = network.state_dict()
    absent, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if absent or extra:
        raise StoreError(
            f"{path} holds another architecture than {type(network).__name__}: "
            f"{_some('it lacks', absent)}{_some('it also has', extra)}{advice}."
        )
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise StoreError(
                f"{path} does not fit {type(network).__name__}: {name} has shape {tuple(value.shape)}, expected "
                f"{tuple(wanted[name].shape)} (the size of a last layer is the number of classes)."
            )
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.is_floating_point() != wanted[name].is_floating_point() or value.is_complex():
            raise StoreError(
                f"{path} does not fit {type(network).__name__}: {name} is of {value.dtype}, {value.layout}, on "
                f"{value.device}, expected plain {wanted[name].dtype}."
            )
        if not torch.isfinite(value).all():
            raise StoreError(f"{path} holds NaN or infinity in {name}: its training must have failed.")


def _some(what: str, names: list[str]) -> str:
    return f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}; " if names else ""


def _same(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, list) and isinstance(ours, list) and theirs and isinstance(theirs[0], float):
        return len(theirs) == len(ours) and all(abs(a - b) < 1e-3 for a, b in zip(theirs, ours, strict=True))
    return bool(theirs == ours)
