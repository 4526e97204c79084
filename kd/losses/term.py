"""A term: one weighted part of the training loss."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from kd.types import Batch, Output


class Term(nn.Module, ABC):
    """Base of every loss term. `forward` returns the unweighted scalar; `Objective` applies the weight.

    A term is a module so that its projectors and memories train, are checkpointed and move between devices. A
    constructor parameter named `temperature`, `alpha` or `beta` takes the method's value unless the term sets its own.
    """

    symbol: str  #: how the term is written in the printed objective, e.g. "T^2 KL"
    needs_teacher: ClassVar[bool] = True

    @abstractmethod
    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """Return the scalar loss of one batch. `teacher` is None only if `needs_teacher` is False."""
