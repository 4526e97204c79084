"""Taps: named intermediate outputs of any network, read by a pure function (torch.fx) instead of hooks."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torchvision
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from kd.check import nearest
from kd.errors import ConfigError
from kd.losses.term import ROLES
from kd.types import Output

Forward = Callable[[nn.Module, Tensor], tuple[Tensor, dict[str, Tensor]]]  # (network, image) -> (logits, taps)


class Tapped(nn.Module):
    """A network whose forward returns an `Output`: its logits, and the taps that were asked for.

    Without taps the network runs as it is. With taps, one traced function per mode (train, eval) runs the network's own
    modules, so that whatever is copied, moved or frozen in the network is so in its taps. A network that returns an
    `Output` itself is taken at its word.
    Raises `ConfigError` for a tap that the network does not have, with the list of those it has; for a network that
    cannot be traced and returns no `Output`, at its first image.
    """

    def __init__(self, network: nn.Module, taps: Sequence[str] = (), *, owner: str = "network") -> None:
        super().__init__()
        self.network = network
        self.names = tuple(taps)
        self.owner = owner
        self._forwards: dict[bool, Forward] = {}  # by the network's mode: training or not
        self._untraceable = ""  # why
        if self.names:
            self._trace()

    def forward(self, image: Tensor) -> Output:
        if self._forwards:
            return Output(*self._forwards[self.network.training](self.network, image))
        output = self.network(image)
        if isinstance(output, Output):
            self._require(output.taps)
            return output
        if self._untraceable:
            raise ConfigError(
                f"The {self.owner}'s network {type(self.network).__name__} cannot be traced ({self._untraceable}), "
                "so it has no taps; let its forward return a kd.types.Output with the taps itself."
            )
        return Output(output, {})

    def _trace(self) -> None:
        for module in self.network.modules():
            if getattr(module, "inplace", False) is True:  # it would overwrite the tap before it
                module.inplace = False  # type: ignore[assignment]
        modes = [(module, module.training) for module in self.network.modules()]
        try:
            traced = {training: _graph(self.network.train(training)) for training in (True, False)}
        except Exception as error:  # fx raises many types on code that it cannot follow
            self._untraceable = str(error) or type(error).__name__
            return
        finally:
            for module, training in modes:
                module.training = training
        if any(getattr(graph.output_node().args[0], "target", None) is Output for graph, _ in traced.values()):
            return  # it makes an `Output` itself
        self._require([name for name in traced[False][1] if name in traced[True][1]])
        _refuse_overwritten(traced[True][1], self.names, self.owner)
        self._forwards = {training: _forward(self.network, *found, self.names) for training, found in traced.items()}

    def _require(self, known: Collection[str]) -> None:
        for name in self.names:
            if name not in known:
                where = {"student": "student", "teacher": "teacher.model"}.get(self.owner, self.owner)
                role = f" It names no layer for this role: set {where}.taps.{name} (in Python, {self.owner}_layers)."
                hint = role if name in ROLES else ""
                raise ConfigError(
                    f"Unknown layer {name!r} of the {self.owner}.{hint}{nearest(name, [*known, *ROLES])} "
                    f"Known: {', '.join(known)}."
                )


def _graph(network: nn.Module) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """Trace a network in its present mode; also return every name that a tap can have, in the order of execution.

    These are the nodes, under torchvision's names for them, and the modules that hold nodes: `layer1` stands for the
    last node inside it.
    """
    own = [made for made in vars(torchvision.ops).values() if isinstance(made, type) and issubclass(made, nn.Module)]
    tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=own)
    graph: fx.Graph = tracer.trace(network)
    names: dict[str, Any] = {}
    for node, name in tracer.node_to_qualname.items():
        if node.op != "placeholder":
            parts = name.split(".")
            names.update({".".join(parts[:length]): node for length in range(1, len(parts) + 1)})
    return graph, names


def _refuse_overwritten(names: dict[str, fx.Node], taps: Sequence[str], owner: str) -> None:
    """Raise `ConfigError` if the code that follows a tap changes it in place."""
    for tap in taps:
        for user in names[tap].users:
            method = user.op == "call_method" and str(user.target).endswith("_") and not str(user.target).endswith("__")
            function = user.op == "call_function" and user.kwargs.get("inplace") is True
            if (method or function) and user.args and user.args[0] is names[tap]:
                raise ConfigError(
                    f"Layer {tap!r} of the {owner} cannot be read: {user} changes it in place. "
                    "Write that without in-place, or name the layer behind it."
                )


def _forward(network: nn.Module, graph: fx.Graph, names: dict[str, fx.Node], taps: Sequence[str]) -> Forward:
    """Return the traced forward, which gives the taps beside what the network returns."""
    output = graph.output_node()
    output.args = ((output.args[0], {tap: names[tap] for tap in taps}),)
    forward: Forward = type(fx.GraphModule(network, graph)).forward
    return forward
