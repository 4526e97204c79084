"""Fully connected networks of many students as one network of batched matrix products.

`vmap` can do them too, but multiplies the image that all students share with each one's weights, and spends more time
in Python than the products of a small network take. Here activations are (K, features, B) for K students: every product
reads the weights, and makes their gradients, as they lie in memory.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from kd.taps import Tapped

Layers = list[tuple[str, nn.Module]]  # by name, in the order in which an image passes them


def layers(student: Tapped) -> Layers | None:
    """The layers of a network that flattens its image and then chains nn.Linear, nn.ReLU and nn.Dropout alone.

    None for any other network, and for one whose taps are asked for or whose modules have hooks.
    """
    if student.names or any(_has_hooks(module) for module in student.modules()):
        return None
    try:
        nodes = list(fx.symbolic_trace(student.network).graph.nodes)
    except Exception:  # fx raises many types on code that it cannot follow
        return None
    found: Layers = []
    for before, node in pairwise(nodes[:-1]):
        module = _module(student.network, node)
        if module is None or node.all_input_nodes != [before] or node.kwargs:
            return None
        found.append((str(node.target), module))
    linear = [place for place, (_, module) in enumerate(found) if isinstance(module, nn.Linear)]
    flat = [place for place, (_, module) in enumerate(found) if isinstance(module, nn.Flatten)]
    is_one = nodes[-1].args == (nodes[-2],) and linear and flat and max(flat) < min(linear)
    return found if is_one else None


def forward(network: Layers, parameters: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """The logits (K, B, C) of students whose parameters are stacked, by their names in a `Tapped`.

    Dropout has the mask that a student alone would draw, the same for all.
    """
    x = image  # shared, (B, ...), until the first linear layer
    is_shared = True
    for name, module in network:
        if isinstance(module, nn.Flatten):
            x = x.flatten(1)
        elif isinstance(module, nn.ReLU):
            x = F.relu(x)
        elif isinstance(module, nn.Linear):
            weight, bias = parameters[f"network.{name}.weight"], parameters.get(f"network.{name}.bias")
            x = _shared_linear(x, weight, bias) if is_shared else _own_linear(x, weight, bias)
            is_shared = False
        elif isinstance(module, nn.Dropout) and module.training and module.p > 0:
            if is_shared:
                x = F.dropout(x, module.p)
            else:
                x = x * F.dropout(torch.ones_like(x[0].mT, memory_format=torch.contiguous_format), module.p).mT
    return x.mT


def _shared_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, I), (K, O, I), (K, O) -> (K, O, B): one product for all students."""
    students, outputs, _ = weight.shape
    rows = weight.flatten(0, 1)
    product = rows @ x.mT if bias is None else torch.addmm(bias.reshape(-1, 1), rows, x.mT)
    return product.view(students, outputs, -1)


def _own_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(K, I, B), (K, O, I), (K, O) -> (K, O, B)."""
    return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias[:, :, None], weight, x)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(bool, hooks))


def _module(network: nn.Module, node: fx.Node) -> nn.Module | None:
    """The layer that a node of the graph is; None if it is none of those that are known here."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if type(module) is nn.Flatten:
            return module if (module.start_dim, module.end_dim) == (1, -1) else None
        return module if type(module) in (nn.Linear, nn.ReLU, nn.Dropout) else None
    is_flatten = node.target in ("flatten", torch.flatten) and node.args[1:] == (1,)
    return nn.Flatten() if is_flatten else None
