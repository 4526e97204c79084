"""The training loss: a weighted sum of terms, and how a method's configuration becomes one."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, cast

from hydra.utils import get_class
from torch import Tensor, nn

from kd.check import hyper_parameters, nearest, number
from kd.errors import ConfigError
from kd.losses.term import Term
from kd.types import Batch, Output


class Objective(nn.Module):
    """Weighted sum of loss terms.

    Args:
        terms: the terms by name, in the order in which they are printed and logged.
        weights: each term's weight, a number of at least 0, by the same names; not all of them 0.

    Raises:
        ConfigError: no terms, names that differ or cannot be used, or a weight out of range.
    """

    weights: dict[str, float]

    def __init__(self, terms: Mapping[str, Term], weights: Mapping[str, float]) -> None:
        super().__init__()
        if not terms:
            raise ConfigError("Expected at least one loss term, but got none.")
        if set(terms) != set(weights):
            raise ConfigError(f"Expected one weight for each of {list(terms)}, but got weights for {list(weights)}.")
        self.weights = {name: number(f"weight of term {name!r}", weights[name], low=0.0) for name in terms}
        if not any(self.weights.values()):
            raise ConfigError(f"Expected a loss term with a weight above 0, but got {self.weights}.")
        try:
            self.terms = nn.ModuleDict(dict(terms))
        except KeyError as error:  # a dot, or the name of one of ModuleDict's own attributes
            raise ConfigError(f"A loss term cannot have this name: {error.args[0]}.") from error

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum, and every term's unweighted value, detached, by name.

        A term of weight 0 is still computed and returned, but is left out of the sum, so that its NaN stays out too.

        Raises:
            ConfigError: a term needs a teacher and `teacher` is None, or a term rejects what it is given.
        """
        values = {name: term(student, teacher, batch) for name, term in self._named_terms()}
        weighted = [self.weights[name] * value for name, value in values.items() if self.weights[name] > 0]
        total = weighted[0]
        for value in weighted[1:]:
            total = total + value
        return total, {name: value.detach() for name, value in values.items()}

    @property
    def needs_teacher(self) -> bool:
        """Whether any term, of whatever weight, learns from a teacher."""
        return any(term.needs_teacher for _, term in self._named_terms())

    def describe(self) -> str:
        """Return the objective as a formula, e.g. `0.10 CE + 0.90 T^2 KL, T = 5`."""
        temperatures = {
            name: f"T = {term.temperature:g}" for name, term in self._named_terms() if hasattr(term, "temperature")
        }
        distinct = sorted(set(temperatures.values()))
        parts = []
        for name, term in self._named_terms():
            weight = self.weights[name]
            part = term.symbol if weight == 1 and len(self.weights) == 1 else f"{_format_weight(weight)} {term.symbol}"
            parts.append(f"{part} ({temperatures[name]})" if name in temperatures and len(distinct) > 1 else part)
        return " + ".join(parts) + (f", {distinct[0]}" if len(distinct) == 1 else "")

    def _named_terms(self) -> Iterator[tuple[str, Term]]:
        return ((name, cast(Term, term)) for name, term in self.terms.items())


def build_objective(method: Mapping[str, Any]) -> Objective:
    """Build the objective that a method's configuration describes.

    `method` is a plain mapping, as in conf/method/*.yaml: `name`; `temperature`, `alpha` and `beta`, null where not
    used; and `terms`, by name. A term has a `_target_`, the class; a `weight`, which is a number of at least 0 or the
    word alpha or beta; and the class's arguments. An argument named temperature, alpha or beta takes the method's value
    unless the term sets its own. As a weight, beta is `1 - alpha` while `method.beta` is null.

    Raises:
        ConfigError: there is no term; a class, an argument or a weight is missing, unknown or out of range; or the
            method sets a temperature, alpha or beta that none of its terms uses.
    """
    shared = hyper_parameters(method)
    nodes = method.get("terms")
    if not isinstance(nodes, Mapping) or not nodes:
        raise ConfigError(f"Expected `method.terms` to hold at least one loss term, but got {nodes!r}.")
    used: set[str] = set()
    terms, weights = {}, {}
    for name, node in nodes.items():
        if not isinstance(node, Mapping):
            raise ConfigError(f"Expected `method.terms.{name}` to hold `_target_` and `weight`, but got {node!r}.")
        weights[name] = _weight(name, node, shared, used)
        terms[name] = _term(name, node, shared, used)
    for key, value in shared.items():
        if key not in used:
            raise ConfigError(
                f"Method {method.get('name')!r} does not use `method.{key}`; it was set to {value:g}. Leave it null."
            )
    return Objective(terms, weights)


def _weight(name: str, node: Mapping[str, Any], shared: Mapping[str, float], used: set[str]) -> float:
    """Return a term's weight as a number; adds what it takes from `shared` to `used`."""
    if node.get("weight") is None:
        raise ConfigError(f"`method.terms.{name}.weight` is missing: set a number of at least 0, or alpha or beta.")
    weight = node["weight"]
    if not isinstance(weight, str):
        return number(f"method.terms.{name}.weight", weight, low=0.0)
    if weight not in ("alpha", "beta"):
        raise ConfigError(
            f"Expected `method.terms.{name}.weight` to be a number of at least 0, or alpha or beta, but got {weight!r}."
        )
    if weight in shared:
        used.add(weight)
        return shared[weight]
    if weight == "beta" and "alpha" in shared:
        used.add("alpha")
        return 1.0 - shared["alpha"]
    raise ConfigError(f"`method.terms.{name}.weight` is {weight}, but `method.{weight}` is not set.")


def _term(name: str, node: Mapping[str, Any], shared: Mapping[str, float], used: set[str]) -> Term:
    """Return the term of one node; adds what it takes from `shared` to `used`."""
    cls = _term_class(name, node.get("_target_"))
    given = {key: value for key, value in node.items() if key not in ("_target_", "weight")}
    parameters = inspect.signature(cls).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    if len(known) == len(parameters):
        for key in given:
            if key not in known:
                raise ConfigError(
                    f"Unknown argument `method.terms.{name}.{key}`.{nearest(key, [*known, 'weight'])} "
                    f"{cls.__name__} takes: {', '.join(known) or 'no arguments'}."
                )
    for key in known:
        if key in shared and key not in given:
            given[key] = shared[key]
            used.add(key)
    missing = [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in given]
    if missing:
        raise ConfigError(f"`method.terms.{name}` lacks {', '.join(missing)}, which {cls.__name__} needs.")
    try:
        return cls(**given)
    except ConfigError as error:
        raise ConfigError(f"`method.terms.{name}`: {error}") from error


def _term_class(name: str, target: Any) -> type[Term]:
    """Return the class that a node's `_target_` names."""
    if not isinstance(target, str):
        raise ConfigError(
            f"Expected `method.terms.{name}._target_` to name the class of a loss term, but got {target!r}."
        )
    try:
        cls = get_class(target)
    except Exception as error:  # whatever importing the user's module raises
        raise ConfigError(f"Cannot import `method.terms.{name}._target_`, {target!r}: {error}") from error
    if not issubclass(cls, Term) or inspect.isabstract(cls):
        raise ConfigError(f"Expected `method.terms.{name}._target_` to be a `Term`, but {target!r} is not one.")
    return cls


def _format_weight(weight: float) -> str:
    """Return the weight with two decimals, or with more digits where two would change it."""
    return f"{weight:.2f}" if abs(weight - round(weight, 2)) < 1e-9 else f"{weight:g}"
