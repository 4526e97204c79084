"""How a method's configuration becomes an objective."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from kd import trust
from kd.check import hyper_parameters, integer, nearest, number
from kd.errors import ConfigError
from kd.losses.objective import Objective
from kd.losses.schedule import WeightSchedule, weight_schedule
from kd.losses.term import Roles, Term


def first_stage(method: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a method's first stage as a method of its own, or None. It has no temperature, alpha or beta."""
    initial = method.get("initial")
    if initial is None:
        return None
    if not isinstance(initial, Mapping) or set(initial) - {"epochs", "terms"}:
        raise ConfigError(f"Expected `method.initial` to hold `terms` and perhaps `epochs`, but got {initial!r}.")
    return {"name": method.get("name"), "stage": "initial", "terms": initial.get("terms")}


def first_stage_epochs(method: Mapping[str, Any], epochs: int) -> int:
    """Return the first stage's length; null is an eighth of the training's, rounded up.

    30 of 240 epochs is what the distillation tables give it (Tian et al. 2020, 1910.10699).
    """
    asked = method["initial"].get("epochs")
    return math.ceil(epochs / 8) if asked is None else integer("method.initial.epochs", asked, low=1)


def build_objective(method: Mapping[str, Any], student: Roles | None = None, teacher: Roles | None = None) -> Objective:
    """Build the objective that a method's configuration describes, for networks with these layers by role.

    `method` is a plain mapping, as in conf/method/*.yaml: `name`; `temperature`, `alpha` and `beta`, null where not
    used; and `terms`, by name. A term has a `_target_`, the class; a `weight`, which is a number of at least 0 or the
    word alpha or beta; perhaps a `schedule` of that weight (see `WeightSchedule`); and the class's arguments. An
    argument named temperature, alpha or beta takes the method's value unless the term sets its own. As a weight, beta
    is `1 - alpha` while `method.beta` is null.

    Raises:
        ConfigError: there is no term; a class, an argument or a weight is missing, unknown or out of range; or the
            method sets a temperature, alpha or beta that none of its terms uses.
    """
    shared = hyper_parameters(method)
    nodes = method.get("terms")
    where = "method.initial.terms" if method.get("stage") == "initial" else "method.terms"
    if not isinstance(nodes, Mapping) or not nodes:
        raise ConfigError(f"Expected `{where}` to hold at least one loss term, but got {nodes!r}.")
    used: set[str] = set()
    terms: dict[str, Term] = {}
    weights: dict[str, float] = {}
    schedules: dict[str, WeightSchedule] = {}
    for name, node in nodes.items():
        if not isinstance(node, Mapping):
            raise ConfigError(f"Expected `{where}.{name}` to hold `_target_` and `weight`, but got {node!r}.")
        weights[name] = _weight(f"{where}.{name}", node, shared, used)
        schedules[name] = weight_schedule(f"{where}.{name}.schedule", node.get("schedule"))
        terms[name] = _term(f"{where}.{name}", node, shared, used)
    for key, value in shared.items():
        if key not in used:
            raise ConfigError(
                f"Method {method.get('name')!r} does not use `method.{key}`; it was set to {value:g}. Leave it null."
            )
    objective = Objective(terms, weights, schedules, where=where)
    objective.resolve(student or {}, teacher or {})
    return objective


def _weight(name: str, node: Mapping[str, Any], shared: Mapping[str, float], used: set[str]) -> float:
    """Return a term's weight as a number; adds what it takes from `shared` to `used`."""
    if node.get("weight") is None:
        raise ConfigError(f"`{name}.weight` is missing: set a number of at least 0, or alpha or beta.")
    weight = node["weight"]
    if not isinstance(weight, str):
        return number(f"{name}.weight", weight, low=0.0)
    if weight not in ("alpha", "beta"):
        raise ConfigError(
            f"Expected `{name}.weight` to be a number of at least 0, or alpha or beta, but got {weight!r}."
        )
    if weight in shared:
        used.add(weight)
        return shared[weight]
    if weight == "beta" and "alpha" in shared:
        used.add("alpha")
        return 1.0 - shared["alpha"]
    raise ConfigError(f"`{name}.weight` is {weight}, but `method.{weight}` is not set.")


def _term(name: str, node: Mapping[str, Any], shared: Mapping[str, float], used: set[str]) -> Term:
    """Return the term of one node; adds what it takes from `shared` to `used`."""
    cls = _term_class(name, node.get("_target_"))
    given = {key: value for key, value in node.items() if key not in ("_target_", "weight", "schedule")}
    parameters = inspect.signature(cls).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    if len(known) == len(parameters):
        for key in given:
            if key not in known:
                raise ConfigError(
                    f"Unknown argument `{name}.{key}`.{nearest(key, [*known, 'weight', 'schedule'])} "
                    f"{cls.__name__} takes: {', '.join(known) or 'no arguments'}."
                )
    for key in known:
        if key in shared and key not in given:
            given[key] = shared[key]
            used.add(key)
    missing = [p.name for p in parameters if p.name in known and p.default is p.empty and p.name not in given]
    if missing:
        raise ConfigError(f"`{name}` lacks {', '.join(missing)}, which {cls.__name__} needs.")
    try:
        return cls(**given)
    except ConfigError as error:
        raise ConfigError(f"`{name}`: {error}") from error


def _term_class(name: str, target: Any) -> type[Term]:
    """Return the class that a node's `_target_` names."""
    cls = trust.resolve(name, target)
    if not (inspect.isclass(cls) and issubclass(cls, Term)) or inspect.isabstract(cls):
        raise ConfigError(f"Expected `{name}._target_` to be a `Term`, but {target!r} is not one.")
    return cls
