"""Deep mutual learning: untrained networks teach each other while all of them train."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.check import integer, number
from kd.errors import ConfigError
from kd.losses.hard import hard_target_loss
from kd.losses.kd import kd_loss
from kd.losses.term import Setting, Term
from kd.types import Batch, Output


def mutual_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | Sequence[Tensor],
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Loss of one network of a cohort, `T^2 mean_l mean_b KL(softmax(z_l / T) || softmax(z / T)) [+ CE(z, y)]`.

    z are this network's logits, z_l those of each of its peers; the cross-entropy is added if there is a target. Zhang
    et al. 2018 (1706.00384), section 3: in a cohort of K networks the divergence is averaged over the K - 1 peers. The
    paper has no temperature, T = 1; other temperatures are given the factor T^2 of `kd_loss`.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C) of one peer, or a list of those of several; get no gradient.
        target: (B,), class numbers.
        temperature: T > 0.

    Raises:
        ConfigError: a shape does not fit, there is no peer, or `temperature` is not in its range.
    """
    peers = [teacher_logits] if isinstance(teacher_logits, Tensor) else list(teacher_logits)
    if not peers:
        raise ConfigError("Expected the logits of at least one peer, but got none.")
    loss = torch.stack([kd_loss(student_logits, peer, temperature=temperature) for peer in peers]).mean()
    return loss if target is None else loss + hard_target_loss(student_logits, target)


class MutualLearning(Term):
    """A cohort of the student and `peers` untrained networks: the student's `mutual_loss`, and the peers' own losses.

    The student's part has no cross-entropy, which is a term of its own; every peer's part has. No gradient goes from
    one network's part into another network, so the sum trains each on its own loss. The paper updates the networks one
    after the other in every step, with predictions computed anew in between; here all of them move at once.

    The peers are delivered beside the student, as `peer`, `peer-2`, `peer-3` and so on.
    """

    symbol = "mutual KL"
    needs_teacher = False
    needs_peer = True

    def __init__(self, peers: int = 1, temperature: float = 1.0) -> None:
        super().__init__()
        count = integer("peers", peers, low=1)
        self.names = ["peer", *(f"peer-{place}" for place in range(2, count + 1))]
        self.temperature = number("temperature", temperature, above=0.0)

    def build(self, setting: Setting) -> None:
        if setting.new_peer is None:
            raise ConfigError(
                "Mutual learning needs an untrained network beside the student, but there is none to make."
            )
        for name in self.names:
            self.add_module(name, setting.new_peer().train().requires_grad_(True))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        peers = [_logits(network(batch.image)) for network in self.delivered().values()]
        loss = mutual_loss(student.logits, peers, temperature=self.temperature)
        for place, peer in enumerate(peers):
            others = [student.logits, *peers[:place], *peers[place + 1 :]]
            loss = loss + mutual_loss(peer, others, batch.target, temperature=self.temperature)
        return loss

    def delivered(self) -> dict[str, nn.Module]:
        return {name: self.get_submodule(name) for name in self.names}


def _logits(output: Tensor | Output) -> Tensor:
    return output.logits if isinstance(output, Output) else output
