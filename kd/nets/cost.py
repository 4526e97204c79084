"""What a network costs: parameters to store, multiply-accumulates to run."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones included, shared ones once. Buffers (BN statistics) do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def size_bytes(model: nn.Module) -> int:
    """Return the bytes of the weights and buffers as they are stored, shared ones once."""
    stored = {tensor.data_ptr() or id(tensor): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in stored.values())


def macs(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of one forward pass of one image (C, H, W), in eval mode.

    PyTorch's `FlopCounterMode` counts two operations per multiply-accumulate, in convolutions, linear layers, matrix
    products and attention. Not counted: batch norm, activations, pooling, biases and other elementwise work.

    The forward pass runs on the model's own device (for a model on "meta" it costs nothing) and leaves the model as it
    was: its buffers, and the training flag of each of its modules.
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(()))
    image = torch.zeros(1, *image_shape, dtype=like.dtype, device=like.device)
    # Copies, because a module may keep count in a buffer even in eval mode.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = {module: module.training for module in model.modules()}
    # The fused inference kernel of nn.MultiheadAttention is invisible to the counter.
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(model, buffers, (image,))
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, flag in training.items():
            module.training = flag
    return int(counter.get_total_flops()) // 2
