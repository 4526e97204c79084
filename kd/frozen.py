"""A frozen network made ready to give logits fast: batch norm folded, weights in the precision it computes in."""

import copy

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from kd.taps import Tapped

TOLERANCE = 1e-3  # of folded logits, relative to the largest; rounding makes some 1e-6


def for_inference(network: Tapped, image: Tensor) -> Tapped:
    """Return a copy of a network in eval mode, without taps, that gives the same logits with less work.

    A batch norm that follows a convolution becomes part of it (equal up to rounding), where fx can follow the network
    and the result is seen to agree on `image` (B, C, H, W). Weights that autocast, if it is on, would convert at every
    call are converted once (equal to the bit).
    """
    with torch.autocast(image.device.type, enabled=False):
        made = _folded(network, image)
    return _converted(made, image) if torch.is_autocast_enabled(image.device.type) else made


def takes_channels_last(network: nn.Module, image: Tensor) -> bool:
    """Lay a network's weights out as (B, H, W, C) in memory, the faster way for convolutions, if it can be given images
    (B, C, H, W) that are laid out like that; return whether it can. Code with a `view` after a convolution cannot.
    """
    if not has_convolutions(network):
        return image.ndim == 4
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        network.to(memory_format=torch.channels_last)  # which weights of five dimensions, say, do not take
        with torch.no_grad():
            network(image.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        network.to(memory_format=torch.contiguous_format)
        return False
    finally:
        for module, mode in modes:
            module.training = mode
    return True


def has_convolutions(network: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in network.modules())


def _folded(network: Tapped, image: Tensor) -> Tapped:
    plain = Tapped(copy.deepcopy(network.network), owner=network.owner).eval()
    if not has_convolutions(plain):
        return plain
    expected = plain(image).logits
    try:
        folded = Tapped(fuse(plain.network), owner=network.owner).eval()
        found = folded(image).logits
    except Exception:  # fx raises many types on code that it cannot follow; the network as it is will do
        return plain
    agrees = (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
    return folded if bool(agrees) else plain


def _converted(network: Tapped, image: Tensor) -> Tapped:
    """A copy whose weights are as autocast would convert them; the network itself if that is not the same to the bit,
    as where code reads a layer's weights beside calling the layer.
    """
    made = copy.deepcopy(network)
    for module in made.modules():
        if type(module) in (nn.Linear, nn.Conv2d):
            module.to(torch.get_autocast_dtype(image.device.type))
    try:
        same = torch.equal(made(image).logits, network(image).logits)
    except RuntimeError:  # two types of numbers in one operation
        return network
    return made if same else network
