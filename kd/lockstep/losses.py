"""The losses of stacked students in one computation, for objectives whose terms can do that."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from kd.losses._numeric import on_device
from kd.losses.objective import Objective
from kd.losses.term import Term
from kd.types import Batch, Output

Losses = tuple[Tensor, dict[str, Tensor]]


def joint_losses(
    objectives: Sequence[Objective], logits: Tensor, teacher: Output | None, batch: Batch
) -> Losses | None:
    """Each student's objective (K,), and every term's values (K,), detached, for logits (K, B, C).

    None if a term has no `joint` computation, the objectives have different terms, or one of them has no weight now,
    which must keep its gradient out.
    """
    first = objectives[0]
    if any(list(one.terms) != list(first.terms) for one in objectives):
        return None
    values: dict[str, Tensor] = {}
    total: Tensor | None = None
    for name in first.terms:
        terms = [cast(Term, one.terms[name]) for one in objectives]
        weights = tuple(one.present_weights[name] for one in objectives)
        if not all(weights) or len({type(term) for term in terms}) > 1:
            return None
        value = type(terms[0]).joint(terms, logits, teacher, batch)
        if value is None:
            return None
        values[name] = value.detach()
        weighted = on_device(weights, value.device) * value
        total = weighted if total is None else total + weighted
    assert total is not None, "an objective has a term"
    return total, values
