"""A GPU without values: tensors on "cuda" that have shapes and a device only, so that code for one runs on any machine.

What fake tensors do not show: what the kernels themselves wait for, and whatever `torch.compile` makes of the code.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd.losses._numeric import on_device
from kd.nets.pruned import READ, note

DEVICE = torch.device("cuda:0")
INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


class WaitsError(Exception):
    """Code that would make the host wait for the device, or has tensors on both."""


class NeverWaits(TorchDispatchMode):
    """Refuses every operation whose result's size or value the host must know, and every tensor on the CPU.

    A number on the CPU may be added to a tensor of a GPU, but not sent there without waiting; here it needs no tensor.

    sends: let tensors be sent to the device, if the host does not wait for their arrival.
    """

    def __init__(self, sends: bool = False) -> None:
        super().__init__()
        self.sends = sends

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if self._waits(func, args):
            raise WaitsError(f"{func} waits for the device")
        is_sent = self.sends and func is torch.ops.aten._to_copy.default and given.get("non_blocking")
        if on_cpu(args) and not is_sent and func is not torch.ops.prim.device.default:
            raise WaitsError(f"{func} of a tensor on the CPU")
        made = func(*args, **given)
        if on_cpu(made):
            raise WaitsError(f"{func} makes a tensor on the CPU")
        return made

    @staticmethod
    def _waits(func: Any, args: Any) -> bool:
        if func.overloadpacket in INDEXING:  # by places it does not, by a mask it counts
            return any(place.dtype in (torch.bool, torch.uint8) for place in args[1] if place is not None)
        return not {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}.isdisjoint(func.tags)


def on_cpu(values: Any) -> bool:
    return any(isinstance(value, Tensor) and value.device.type == "cpu" for value in tree_leaves(values))


def moved(tensor: Tensor) -> Tensor:
    """An empty tensor of the device like this one."""
    found = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)
    if tensor in READ:  # what a network asks its device for once, after it was moved there
        note(found, READ[tensor][1])
    return nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else found


def move(*networks: nn.Module) -> None:
    """Put networks onto the device; tensors that they share, they share there."""
    done: dict[Tensor, Tensor] = {}
    for module in nn.ModuleList(networks).modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None and tensor.device != DEVICE:
                    own[name] = done[tensor] = done[tensor] if tensor in done else moved(tensor)


def backward(loss: Tensor) -> None:
    """`loss.backward()`, node by node: autograd's own engine looks for a real device first."""
    with torch.no_grad():
        gradients: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
        for node in _in_order(loss.grad_fn):
            if node not in gradients:
                continue
            call = node.apply if isinstance(node, BackwardCFunction) else node
            made = call(*gradients.pop(node))
            for (behind, place), gradient in zip(node.next_functions, _listed(made), strict=True):
                if behind is not None and gradient is not None:
                    expected = behind._input_metadata
                    sums = gradients.setdefault(behind, [None] * len(expected))
                    like = expected[place]
                    gradient = gradient.sum_to_size(like.shape).to(like.dtype)
                    sums[place] = gradient if sums[place] is None else sums[place] + gradient


def _listed(made: Any) -> Iterable[Tensor | None]:
    return made if isinstance(made, tuple) else (made,)


def _in_order(root: Any) -> list[Any]:
    """The nodes of a graph, each before those behind it."""
    order, seen, waiting = [], set(), [(root, False)]
    while waiting:
        node, is_done = waiting.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            waiting += [(node, True), *((behind, False) for behind, _ in node.next_functions if behind is not None)]
    return order[::-1]


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Run code as on a GPU. What is kept for several steps is not kept beyond."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(Tensor, "backward", lambda loss: backward(loss))
        patch.setattr("torch.cuda.get_rng_state", lambda _: None)  # the state of the draws is the host's
        patch.setattr("torch.get_rng_state", lambda: None)
        patch.setattr("torch.set_rng_state", lambda _: None)
        # one kernel, of which fake tensors know nothing; this one is given the same
        patch.setattr("torch._fused_sgd_", lambda weights, gradients, *_, **__: torch._foreach_add_(weights, gradients))
        patch.setattr(nn.Module, "to", lambda module, **_: module)  # as they are: fake parameters cannot be changed
        on_device.cache_clear()
        yield
    on_device.cache_clear()
