"""The training loss: a weighted sum of terms."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd.check import number
from kd.errors import ConfigError
from kd.losses.schedule import WeightSchedule
from kd.losses.term import Roles, Setting, Term
from kd.types import Batch, Output


class Objective(nn.Module):
    """Weighted sum of loss terms.

    Args:
        terms: the terms by name, in the order in which they are printed and logged.
        weights: each term's weight, a number of at least 0, by the same names; not all of them 0.
        schedules: how weights change over the epochs, for those that do.
        where: where the terms are configured, for messages.

    Raises:
        ConfigError: no terms, names that differ or cannot be used, a weight out of range, or an epoch in which no term
            has a weight.
    """

    weights: dict[str, float]
    _changed: Tensor

    def __init__(
        self,
        terms: Mapping[str, Term],
        weights: Mapping[str, float],
        schedules: Mapping[str, WeightSchedule] | None = None,
        *,
        where: str = "method.terms",
    ) -> None:
        super().__init__()
        self.where = where
        if not terms:
            raise ConfigError("Expected at least one loss term, but got none.")
        if set(terms) != set(weights):
            raise ConfigError(f"Expected one weight for each of {list(terms)}, but got weights for {list(weights)}.")
        self.weights = {name: number(f"weight of term {name!r}", weights[name], low=0.0) for name in terms}
        if not any(self.weights.values()):
            raise ConfigError(f"Expected a loss term with a weight above 0, but got {self.weights}.")
        self.schedules = {name: (schedules or {}).get(name, WeightSchedule()) for name in terms}
        turns = {0, *(epoch for schedule in self.schedules.values() for epoch in schedule.turns())}
        for epoch in sorted(turns):
            if not any(self._weights_in(epoch).values()):
                raise ConfigError(
                    f"No loss term has a weight above 0 in epoch {epoch + 1}: let one start with the training "
                    f"(`{where}.NAME.schedule.start_epoch`)."
                )
        #: of the terms whose weight changes: as tensors, which compiled code reads anew, where a number is part of it
        self._changing = {name: n for n, name in enumerate(name for name in terms if self.schedules[name].changes)}
        self.register_buffer("_changed", torch.empty(len(self._changing)), persistent=False)
        self._set_weights(0)
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
        values = {}
        for name, term in self._named_terms():
            values[name] = self._attempt(name, term, student, teacher, batch)
        weighted = [self._weigh(name, values[name]) for name in self._weighted]
        total = weighted[0]
        for value in weighted[1:]:
            total = total + value
        return total, {name: value.detach() for name, value in values.items()}

    # --- before and during training ---------------------------------------------------------------------------------

    def resolve(self, student: Roles, teacher: Roles) -> None:
        """Tell every term the layers of both networks by role."""
        for name, term in self._named_terms():
            self._attempt(name, term.resolve, student, teacher)

    def layers(self, side: str) -> tuple[str, ...]:
        """The intermediate outputs that the terms read of the "student" or the "teacher", each once."""
        return tuple(dict.fromkeys(name for read in self.layers_by_term().values() for name in read[side]))

    def layers_by_term(self) -> dict[str, dict[str, list[str]]]:
        """For each term that reads intermediate outputs, those of the "student" and of the "teacher"."""
        return {
            name: {"student": list(term.student_layers), "teacher": list(term.teacher_layers)}
            for name, term in self._named_terms()
            if term.student_layers or term.teacher_layers
        }

    def wrap(self, model: dict[str, Any], setting: Setting) -> dict[str, Any] | None:
        """The configuration of the network that a term wants trained in place of the student's; None: the student's.

        Raises `ConfigError` if several terms want one.
        """
        wrapped = [made for _, term in self._named_terms() if (made := term.wrap(model, setting)) is not None]
        if len(wrapped) > 1:
            raise ConfigError(f"Only one loss term can replace the student's network, but {len(wrapped)} do.")
        return wrapped[0] if wrapped else None

    def build(self, setting: Setting) -> None:
        """Let every term make its own parts. Raises `ConfigError` naming the term that cannot."""
        for name, term in self._named_terms():
            self._attempt(name, term.build, setting)

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, that weights and terms go by."""
        self._set_weights(epoch)
        for _, term in self._named_terms():
            term.begin_epoch(epoch)

    def carry_over(self, weights: Mapping[str, Tensor]) -> None:
        """Take over from an earlier stage's `terms` the parts that both stages have.

        A part is a submodule with the same name in a term of the same name, e.g. `factor.paraphraser`. Raises
        `ConfigError` if a part differs in size, or if there is none where a term needs one.
        """
        for name, term in self._named_terms():
            for part, module in term.named_children():
                prefix = f"{name}.{part}."
                found = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
                if found:
                    try:
                        module.load_state_dict(found)
                    except RuntimeError as error:
                        reason = str(error).splitlines()[-1].strip()
                        raise ConfigError(
                            f"`{self.where}.{name}` differs from the same term of the first stage: {reason}"
                        ) from error
                elif part in term.carried:
                    raise ConfigError(
                        f"`{self.where}.{name}` goes on with what a first stage has trained, but "
                        f"`method.initial.terms` has no term {name!r} with a {part}."
                    )

    def delivered(self) -> dict[str, nn.Module]:
        """Networks that are delivered beside the student, by name."""
        return {name: network for _, term in self._named_terms() for name, network in term.delivered().items()}

    @property
    def present_weights(self) -> dict[str, float]:
        """The terms' weights in the present epoch."""
        return self._weights

    # --- what it needs ----------------------------------------------------------------------------------------------

    @property
    def has_all_terms_always(self) -> bool:
        """Whether every term has a weight above 0 in every epoch."""
        turns = {0, *(epoch for schedule in self.schedules.values() for epoch in schedule.turns())}
        return all(weight > 0 for epoch in turns for weight in self._weights_in(epoch).values())

    @property
    def needs_teacher(self) -> bool:
        """Whether any term, of whatever weight, learns from a teacher."""
        return any(term.needs_teacher for _, term in self._named_terms())

    @property
    def needs_student(self) -> bool:
        """Whether any term looks at the student."""
        return any(term.needs_student for _, term in self._named_terms())

    @property
    def needs_peer(self) -> bool:
        """Whether any term trains an untrained network of the teacher's kind beside the student."""
        return any(term.needs_peer for _, term in self._named_terms())

    # --- in words ---------------------------------------------------------------------------------------------------

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
            own_temperature = temperatures[name] if name in temperatures and len(distinct) > 1 else ""
            notes = ", ".join(filter(None, (own_temperature, self.schedules[name].describe())))
            parts.append(f"{part} ({notes})" if notes else part)
        return " + ".join(parts) + (f", {distinct[0]}" if len(distinct) == 1 else "")

    def describe_layers(self) -> list[str]:
        """Say for each term that reads layers which: `rkd reads flatten of the student; flatten of the teacher`."""
        lines = []
        for name, read in self.layers_by_term().items():
            sides = [f"{', '.join(layers)} of the {side}" for side, layers in read.items() if layers]
            lines.append(f"{name} reads {'; '.join(sides)}")
        return lines

    def _weights_in(self, epoch: int) -> dict[str, float]:
        return {name: weight * self.schedules[name](epoch) for name, weight in self.weights.items()}

    def _set_weights(self, epoch: int) -> None:
        self._weights = self._weights_in(epoch)
        self._weighted = tuple(name for name, weight in self._weights.items() if weight > 0)
        self._changed.copy_(torch.tensor([self._weights[name] for name in self._changing]))

    def _weigh(self, name: str, value: Tensor) -> Tensor:
        """The product, of weight 1 the value itself: compiled, `1.0 * value` beside its detached copy has no gradient.

        That is a fault of torch 2.15's inductor.
        """
        if name in self._changing:
            return self._changed[self._changing[name]] * value
        weight = self._weights[name]
        return value if weight == 1 else weight * value

    def _attempt(self, term: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the call returns; a `ConfigError` says which term it is that cannot work."""
        try:
            return call(*arguments)
        except ConfigError as error:
            raise ConfigError(f"`{self.where}.{term}`: {error}") from error

    def _named_terms(self) -> Iterator[tuple[str, Term]]:
        return ((name, cast(Term, term)) for name, term in self.terms.items())


def _format_weight(weight: float) -> str:
    """Return the weight with two decimals, or with more digits where two would change it."""
    return f"{weight:.2f}" if abs(weight - round(weight, 2)) < 1e-9 else f"{weight:g}"
