"""Two ways to train students on a shared batch: one after the other (`Looped`), or as one network (`Stacked`)."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, optim
from torch.func import functional_call, stack_module_state
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd.batch_loss import NOTHING
from kd.distiller import Sums
from kd.lockstep import mlp
from kd.lockstep.losses import joint_losses
from kd.losses.objective import Objective
from kd.taps import Tapped
from kd.types import Batch, Output

#: optimisers that treat every number of a parameter alike, so that one of them can step stacked parameters
ELEMENTWISE: tuple[type[Optimizer], ...] = (
    optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam,
    optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Adamax,
)  # fmt: skip

Rule = Callable[[Optimizer], LRScheduler]


class Learner:
    """One student with what it is trained by; the step itself is made in one of two ways.

    `kind`: learners of one kind have the same network and optimiser settings. `rule` makes the schedule of an
    optimiser's learning rate.
    """

    def __init__(
        self,
        student: Tapped,
        objective: Objective,
        make_optimizer: Callable[[list[Tensor]], Optimizer],
        rule: Rule,
        *,
        kind: str,
        clip: float | None,
    ) -> None:
        self.student, self.objective, self.make_optimizer, self.rule = student, objective, make_optimizer, rule
        self.kind, self.clip = kind, clip
        self.optimizer = make_optimizer(self.trained())
        self.schedule = rule(self.optimizer)
        self.draws: Any = None  # its own stream of random draws
        self.sums = Sums()  # of the present epoch
        self.pending = Sums()  # of the present epoch, that a stack had not yet given to it when it was cut off

    def trained(self) -> list[Tensor]:
        """The parameters, in the order in which a student alone has them."""
        both = [*self.student.parameters(), *self.objective.parameters()]
        return [parameter for parameter in dict.fromkeys(both) if parameter.requires_grad]

    def duplicate(self) -> "Learner":
        """A copy that can be trained without a trace in this one."""
        student, objective = copy.deepcopy((self.student, self.objective))
        made = Learner(student, objective, self.make_optimizer, self.rule, kind=self.kind, clip=self.clip)
        made.load(copy.deepcopy((self.optimizer.state_dict(), self.schedule.state_dict())))
        made.draws = self.draws
        return made

    def load(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Go on with the optimiser and the schedule of an earlier training."""
        self.optimizer.load_state_dict(state[0])
        self.schedule.load_state_dict(state[1])


class Way(ABC):
    """Makes the steps of some learners."""

    name: str
    losses: Tensor  # of each learner at the latest step (K,), detached

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = list(learners)

    @abstractmethod
    def step(self, batch: Batch, teacher: Output | None) -> None:
        """One optimiser step of every learner on a batch that they share."""

    def settle(self) -> None:
        """Give the learners all that they have learned: before they are read, saved or trained in another way."""

    def sum_up(self) -> None:
        """Give the learners their sums of the epoch, at its end."""

    def pending(self) -> list[Sums]:
        """What each learner has not been given yet of its sums."""
        return [Sums() for _ in self.learners]


class Looped(Way):
    """Each student in turn, exactly as if it were alone: the same numbers, bit by bit."""

    name = "looped"

    def __init__(self, learners: Sequence[Learner]) -> None:
        super().__init__(learners)
        for learner in learners:
            learner.sums.add(learner.pending.count, learner.pending.totals)
            learner.pending = Sums()

    def step(self, batch: Batch, teacher: Output | None) -> None:
        losses = []
        for learner in self.learners:
            restore_draws(learner.draws, batch.image.device)
            student = learner.student(batch.image) if learner.objective.needs_student else NOTHING
            loss, terms = learner.objective(student, teacher, batch)
            note(learner.sums, batch, loss, terms)
            losses.append(loss.detach())
            with torch.autocast(loss.device.type, enabled=False):  # it is for forward passes
                learner.optimizer.zero_grad()
                loss.backward()
                if learner.clip is not None:
                    torch.nn.utils.clip_grad_norm_(learner.trained(), learner.clip)
                learner.optimizer.step()
            learner.schedule.step()
            learner.draws = draws(batch.image.device)
        self.losses = torch.stack(losses)


class Stacked(Way):
    """All students as one network with a dimension more, and one optimiser; for learners of one kind.

    A student's own parameters and buffers become views of the stacked ones, so that they are always up to date.
    """

    name = "stacked"

    def __init__(self, learners: Sequence[Learner]) -> None:
        super().__init__(learners)
        first = learners[0]
        for learner in learners:
            learner.student.to(memory_format=torch.contiguous_format)  # vmap knows no other layout
        self.network = copy.deepcopy(first.student)  # for its code, not compiled; its own tensors are not used
        self.parameters, self.buffers = stack_module_state([learner.student for learner in learners])
        for place, learner in enumerate(learners):
            _view(learner.student, self.parameters, self.buffers, place)
        self.trained = [parameter for parameter in self.parameters.values() if parameter.requires_grad]
        self.optimizer = first.make_optimizer(self.trained)
        self.schedule = first.rule(self.optimizer)
        self._take_over()
        self.sums = self._cut_off()  # of each student (K,), until they are summed up
        self._mlp = mlp.layers(self.network)
        self._vmapped = torch.func.vmap(self._one, in_dims=(0, 0, None), randomness="same")

    def step(self, batch: Batch, teacher: Output | None) -> None:
        restore_draws(self.learners[0].draws, batch.image.device)
        logits, taps = self._forward(batch.image)
        losses = self._losses(logits, taps, teacher, batch)
        self.losses = losses.detach()
        with torch.autocast(losses.device.type, enabled=False):
            self.optimizer.zero_grad()
            losses.sum().backward()  # type: ignore[no-untyped-call]
            if (limit := self.learners[0].clip) is not None:
                _clip_each([p.grad for p in self.trained if p.grad is not None], limit)
            self.optimizer.step()
        self.schedule.step()

    def _forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The students' logits (K, B, C) and taps."""
        if self._mlp is not None:
            return mlp.forward(self._mlp, self.parameters, image), {}
        found: tuple[Tensor, dict[str, Tensor]] = self._vmapped(self.parameters, self.buffers, image.contiguous())
        return found

    def _losses(self, logits: Tensor, taps: dict[str, Tensor], teacher: Output | None, batch: Batch) -> Tensor:
        """The students' losses (K,)."""
        forwarded = draws(batch.image.device)
        found = joint_losses([learner.objective for learner in self.learners], logits, teacher, batch)
        if found is not None:
            note(self.sums, batch, *found)
            for learner in self.learners:
                learner.draws = forwarded
            return found[0]
        losses = []
        for place, learner in enumerate(self.learners):
            restore_draws(forwarded, batch.image.device)  # a loss may draw too, as it would alone
            student = Output(logits[place], {name: tap[place] for name, tap in taps.items()})
            loss, terms = learner.objective(student, teacher, batch)
            note(learner.sums, batch, loss, terms)
            losses.append(loss)
            learner.draws = draws(batch.image.device)
        return torch.stack(losses)

    def sum_up(self) -> None:
        for learner, own in zip(self.learners, self.pending(), strict=True):
            learner.sums.add(own.count, own.totals)
        self.sums = Sums()

    def pending(self) -> list[Sums]:
        found = [Sums() for _ in self.learners]
        for place, own in enumerate(found):
            own.add(self.sums.count, {name: value[place] for name, value in self.sums.totals.items()})
        return found

    def _cut_off(self) -> Sums:
        """The sums of an epoch in the middle of which its students go on."""
        sums, parts = Sums(), [learner.pending for learner in self.learners]
        for name in parts[0].totals:
            sums.totals[name] = torch.stack([part.totals[name] for part in parts])
        sums.count = parts[0].count
        for learner in self.learners:
            learner.pending = Sums()
        return sums

    def settle(self) -> None:
        for place, learner in enumerate(self.learners):
            _copy_groups(self.optimizer, learner.optimizer)
            for own, stacked in zip(learner.trained(), self.trained, strict=True):
                state = self.optimizer.state.get(stacked, {})
                learner.optimizer.state[own] = {
                    name: value[place].clone() if _is_elementwise(name, value, stacked) else copy.deepcopy(value)
                    for name, value in state.items()
                }
            learner.schedule.load_state_dict(copy.deepcopy(self.schedule.state_dict()))

    def _take_over(self) -> None:
        """Go on from the learners' optimisers, which may have made steps already."""
        first, columns = self.learners[0], [learner.trained() for learner in self.learners]
        _copy_groups(first.optimizer, self.optimizer)
        for at, stacked in enumerate(self.trained):
            pairs = zip(self.learners, columns, strict=True)
            states = [learner.optimizer.state.get(own[at], {}) for learner, own in pairs]
            self.optimizer.state[stacked] = {
                name: torch.stack([state[name] for state in states])
                if _is_elementwise(name, value, columns[0][at])
                else copy.deepcopy(value)
                for name, value in states[0].items()
            }
        self.schedule.load_state_dict(copy.deepcopy(first.schedule.state_dict()))

    def _one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], image: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        output: Output = functional_call(self.network, (parameters, buffers), (image,))
        return output.logits, output.taps


def why_not_stacked(learner: Learner) -> str:
    """Why a learner cannot be stacked; empty if it can, as far as can be said before it is tried."""
    if any(parameter.requires_grad for parameter in learner.objective.parameters()):
        return "their losses have parameters of their own"
    optimizer = learner.optimizer
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if type(optimizer) not in ELEMENTWISE or len(optimizer.param_groups) > 1 or hooks:
        return "their optimiser does not treat every number of a parameter alike"
    return ""


def note(sums: Sums, batch: Batch, loss: Tensor, terms: dict[str, Tensor]) -> None:
    """Add a step's loss and terms, of one student or of each one, to the epoch's sums."""
    images = len(batch.target)
    sums.add(images, {name: mean * images for name, mean in {"loss": loss.detach(), **terms}.items()})


def draws(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Where the stream of random draws is."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def restore_draws(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def _view(student: Tapped, parameters: dict[str, Tensor], buffers: dict[str, Tensor], place: int) -> None:
    """Let a student's tensors be those of its place in the stack."""
    for name, parameter in student.named_parameters():
        parameter.data = parameters[name].data[place]
    for name, _ in list(student.named_buffers()):
        owner, _, last = name.rpartition(".")
        student.get_submodule(owner)._buffers[last] = buffers[name][place]


def _clip_each(gradients: Sequence[Tensor], limit: float) -> None:
    """Scale each student's gradients (K, ...) to a norm of at most `limit`, as `clip_grad_norm_` does for one."""
    norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])  # (P, K)
    scale = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


def _copy_groups(source: Optimizer, target: Optimizer) -> None:
    """What the schedule has changed in an optimiser: its learning rate, its momentum."""
    for one, other in zip(source.param_groups, target.param_groups, strict=True):
        other.update({name: copy.deepcopy(value) for name, value in one.items() if name != "params"})


def _is_elementwise(name: str, value: Any, parameter: Tensor) -> bool:
    """Whether an optimiser keeps this for every number of a parameter; the count of steps is one for all."""
    return name != "step" and isinstance(value, Tensor) and value.shape == parameter.shape
