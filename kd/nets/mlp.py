"""The multilayer perceptron of the first distillation experiments."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from kd import check
from kd.nets import arguments


class MLP(nn.Module):
    """(B, C, H, W) -> flatten -> [Linear, ReLU, dropout] per entry of `hidden` -> Linear -> (B, num_classes).

    Taps: `hidden.0`, `hidden.1`, ..., each (B, hidden[i]); their parts are `linear`, `relu` and, if any, `dropout`. An
    empty `hidden` is softmax regression. `input_dropout` drops pixels, as in Hinton et al. 2012 (1207.0580), whose
    1200-1200 network with dropout is the MNIST teacher of Hinton et al. 2015 (1503.02531); its student has 800-800.
    """

    def __init__(
        self,
        hidden: Sequence[int],
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        *,
        num_classes: int,
        image_shape: Sequence[int],
    ) -> None:
        super().__init__()
        dropout = check.number("dropout", dropout, low=0, high=1)
        sizes = [math.prod(arguments.shape(image_shape)), *arguments.widths("hidden", hidden)]
        share = check.number("input_dropout", input_dropout, low=0, high=1)
        self.input_dropout = nn.Dropout(share) if share else None
        self.hidden = dense(sizes, dropout)
        self.fc = nn.Linear(sizes[-1], check.integer("num_classes", num_classes, low=1))

    def forward(self, image: Tensor) -> Tensor:
        x = image.flatten(1)
        if self.input_dropout is not None:
            x = self.input_dropout(x)
        logits: Tensor = self.fc(self.hidden(x))
        return logits


def dense(sizes: Sequence[int], dropout: float) -> nn.Sequential:
    """Return [Linear, ReLU, dropout if any] from each size to the next: (B, sizes[0]) -> (B, sizes[-1])."""

    def block(a: int, b: int) -> nn.Sequential:
        last = {"dropout": nn.Dropout(dropout)} if dropout else {}
        return nn.Sequential(OrderedDict(linear=nn.Linear(a, b), relu=nn.ReLU(), **last))

    return nn.Sequential(*(block(a, b) for a, b in pairwise(sizes)))
