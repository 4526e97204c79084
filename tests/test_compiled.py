"""What the compiler makes of a step: one graph of teacher, student and loss, made once."""

from pathlib import Path

import pytest
import torch

from kd.batch_loss import Losses
from tests.commands import SMALL_CNNS
from tests.test_step import loss_of

METHODS = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "method").glob("*.yaml"))
WARMED_UP = "+method.terms.kd.schedule.warmup_epochs=3"


def graphs(run, batch, objective, epochs: int = 3) -> int:
    """How many graphs the steps of some epochs take: a break makes two of one, what changes makes it anew."""
    torch.compiler.reset()
    made = []

    def count(graph, _):
        made.append(graph)
        return graph.forward

    compiled = torch.compile(run, backend=count)
    for epoch in range(epochs):
        objective.begin_epoch(epoch)
        for _ in range(2):
            compiled(batch)[0].backward()
    return len(made)


@pytest.mark.parametrize(
    "overrides",
    [*[(f"method={name}",) for name in METHODS], ("method=kd", WARMED_UP)],
    ids=[*METHODS, "a weight that grows"],
)
def test_a_step_is_one_graph_made_once(overrides):
    loss, batch, _ = loss_of("off", *SMALL_CNNS, "model@teacher.model=resnet8", *overrides)
    loss.teacher.hurry(batch.image)
    assert graphs(loss.eager, batch, loss.objective) == 1


@pytest.mark.filterwarnings("ignore")  # what torch says of the break
def test_a_read_of_a_value_would_be_seen():
    loss, batch, _ = loss_of("off", *SMALL_CNNS, "model@teacher.model=resnet8")

    def reads(batch) -> Losses:
        total, terms = loss.eager(batch)
        return total * float(total.detach() > 0), terms

    assert graphs(reads, batch, loss.objective, 1) > 1
