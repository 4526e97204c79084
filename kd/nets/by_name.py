"""Any classifier of torchvision or timm, by its name, made fit for tapping."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torchvision
from torch import nn

from kd import check
from kd.errors import ConfigError
from kd.nets import arguments


def torchvision_model(
    name: str,
    num_classes: int,
    image_shape: Sequence[int] | None = None,
    weights: str | None = None,
    **options: Any,
) -> nn.Module:
    """Build `torchvision.models.<name>`: (B, 3, H, W) -> (B, num_classes). Without `weights` nothing is downloaded.

    `options` go to torchvision's own constructor. `image_shape` only serves to refuse what cannot work (torchvision's
    networks take three channels) and to size the position embeddings of `vit_*`.

    In-place activation modules are made to work out of place. What remains as torchvision wrote it: its ResNets use one
    ReLU module several times, and DenseNet, GoogLeNet and Inception call an in-place `F.relu`, which overwrites a tap
    on its input.
    """
    check.integer("num_classes", num_classes, low=1)
    _known("torchvision", name, torchvision.models.list_models(module=torchvision.models))
    if image_shape is not None:
        channels, height, _ = arguments.shape(image_shape)
        if channels != 3:
            raise ConfigError(
                f"torchvision's {name} takes images of 3 channels, but the dataset's have {channels}."
                " `model=timm` has networks for any number of channels."
            )
        if name.startswith("vit_"):
            options.setdefault("image_size", height)
    if name in ("googlenet", "inception_v3"):
        # With their auxiliary classifiers these two return a tuple while training; a classifier returns logits.
        # Without `init_weights` they warn that their default is about to change.
        options = {"aux_logits": False, "init_weights": True, **options}
    return _build(
        f"torchvision's {name}",
        lambda: torchvision.models.get_model(name, weights=weights, num_classes=num_classes, **options),
    )


def timm_model(
    name: str, num_classes: int, image_shape: Sequence[int], pretrained: bool = False, **options: Any
) -> nn.Module:
    """Build timm's network `name`: (B, C, H, W) -> (B, num_classes). Without `pretrained` nothing is downloaded.

    `options` go to `timm.create_model`. Networks of a fixed input size (transformers, mixers) are built for the
    dataset's, unless `img_size` is given. In-place activation modules are made to work out of place.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"The network {name!r} needs timm: pip install timm") from error
    check.integer("num_classes", num_classes, low=1)
    if files := sorted({"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"} & set(options)):
        raise ConfigError(f"`{files[0]}` names a file of weights; weights from a file are read with teacher.path=FILE.")
    channels, height, width = arguments.shape(image_shape)
    architecture = str(name).partition(".")[0]  # "resnet18.a1_in1k" is resnet18 with the weights tagged a1_in1k
    _known("timm", architecture, timm.list_models())
    published = timm.models.get_pretrained_cfg(architecture)
    if published is not None and published.fixed_input_size:
        options.setdefault("img_size", (height, width))
    return _build(
        f"timm's {name}",
        lambda: timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=channels, **options),
    )


def _known(library: str, name: str, names: Iterable[str]) -> None:
    known = list(names)
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=5, cutoff=0.5)
        near = f" Nearest: {', '.join(close)}." if close else ""
        raise ConfigError(
            f"Unknown {library} model {name!r}.{near} Known: the {len(known)} of {library}'s list_models()."
        )


def _build(what: str, build: Callable[[], Any]) -> nn.Module:
    """Return the network, out of place; a constructor's complaint about its arguments becomes a `ConfigError`."""
    try:
        model: nn.Module = build()
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{what} cannot be built as configured: {error}") from error
    module: Any
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    return model
