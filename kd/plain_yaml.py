"""YAML of bounded size: an alias repeats what it names, and a few lines of aliases of aliases stand for terabytes."""

from typing import Any

import omegaconf._utils as of_omegaconf
import yaml
from yaml.composer import ComposerError
from yaml.nodes import CollectionNode, MappingNode, Node

LARGEST = 200_000  # values of a file, with those that aliases repeat; a run's configuration has 200
_unbounded = of_omegaconf.get_yaml_loader


def bounded_loader() -> Any:
    """OmegaConf's class of loaders. They raise `ComposerError` for aliases of more than `LARGEST` values."""

    class Bounded(_unbounded()):  # type: ignore[misc]
        def compose_node(self, parent: Node | None, index: Any) -> Node | None:
            counts = self.__dict__.setdefault("_counts", {})  # values in and below a node, by its identity
            is_alias = self.check_event(yaml.AliasEvent)
            node: Node | None = super().compose_node(parent, index)
            if node is None:
                return None
            if is_alias and id(node) not in counts:
                raise ComposerError(None, None, "an alias stands for what it is in", node.start_mark)
            if not is_alias:
                counts[id(node)] = 1 + sum(counts[id(part)] for part in _parts(node))
            if counts[id(node)] > LARGEST:
                raise ComposerError(None, None, f"its aliases stand for over {LARGEST:,} values", node.start_mark)
            return node

    return Bounded


def install() -> None:
    """Let OmegaConf, and Hydra through it, read with these loaders."""
    of_omegaconf.get_yaml_loader = bounded_loader


def _parts(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, CollectionNode) else []
