"""A term: one weighted part of the training loss, and what it may look at when it builds its own parts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from kd.errors import ConfigError
from kd.types import Batch, Output

Layers = str | Sequence[str]  # roles that a network's `taps` name ("stages", "embedding"), or names of its layers
Roles = Mapping[str, str | Sequence[str]]  # a network's layers by role
ROLES = ("stem", "stages", "preactivations", "embedding", "middle", "final")


@dataclass(frozen=True)
class Setting:
    """What a term is built for: both networks, and what they answer to two blank images.

    The outputs tell shapes only. `transfer_set` reads the index (N,) and the label (N,) of every image that the student
    is trained on, without augmentation or order; `new_peer` builds an untrained network of the teacher's kind.
    """

    student: Output
    teacher: Output | None
    student_network: nn.Module
    teacher_network: nn.Module | None
    num_classes: int
    seed: int = 0
    student_roles: Roles = field(default_factory=dict)
    teacher_roles: Roles = field(default_factory=dict)
    transfer_set: Callable[[], tuple[Tensor, Tensor]] | None = None
    new_peer: Callable[[], nn.Module] | None = None


class Term(nn.Module, ABC):
    """Base of every loss term. `forward` returns the unweighted scalar; `Objective` applies the weight.

    A term is a module so that its projectors and memories train, are checkpointed and move between devices. A
    constructor parameter named `temperature`, `alpha` or `beta` takes the method's value unless the term sets its own.
    """

    symbol: str  #: how the term is written in the printed objective, e.g. "T^2 KL"
    transfers: ClassVar[str] = "logits"  #: what of the teacher's the student learns: logits, features, relations
    needs_teacher: ClassVar[bool] = True
    needs_student: ClassVar[bool] = True  #: False for a first stage that trains nothing of the student's
    needs_peer: ClassVar[bool] = False  #: whether `build` calls `setting.new_peer`
    remembers: ClassVar[bool] = False  #: whether it keeps something for every image of the transfer set
    carried: ClassVar[tuple[str, ...]] = ()  #: submodules that a first stage must have trained
    student_layers: tuple[str, ...] = ()  #: the intermediate outputs it reads, of the student
    teacher_layers: tuple[str, ...] = ()  #: and of the teacher

    @abstractmethod
    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """Return the scalar loss of one batch. `teacher` is None only if `needs_teacher` is False."""

    @classmethod
    def joint(cls, terms: Sequence[Self], logits: Tensor, teacher: Output | None, batch: Batch) -> Tensor | None:
        """Return K terms' losses (K,) of K students' logits (K, B, C) at once; None: only one by one, by `forward`."""
        return None

    def resolve(self, student: Roles, teacher: Roles) -> None:
        """Turn the roles that the term was given into the names of layers. Called before `build`."""

    def build(self, setting: Setting) -> None:
        """Make what depends on shapes or on the data: regressors, memories. Called once, before the optimiser exists.

        Raises `ConfigError` if the term cannot work in this setting.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Called at the start of every epoch, counted from 0, also after a resume."""

    def wrap(self, model: dict[str, Any], setting: Setting) -> dict[str, Any] | None:
        """Return the configuration of the network to train in place of the student's; None: the student's own.

        `model` is the student's configuration with all of its arguments, so that it can be a part of the new one. The
        term's `build` is given the new network.
        """
        return None

    def delivered(self) -> dict[str, nn.Module]:
        """Networks that are delivered beside the student, by name."""
        return {}


class FeatureTerm(Term):
    """A term that compares intermediate outputs: each of the student's layers with one of the teacher's.

    `student` and `teacher` hold roles or names of layers. The roles are those of the network's `taps` (in
    conf/model/*.yaml): `stages`, the feature maps at the end of each stage; `embedding`, the vector that the last
    linear layer classifies; and others. Unless they are named there, `middle` and `final` follow from `stages`. Where
    a role stands for more layers than the other side has, its last ones are used: stages are matched from the output
    backwards.

    Raises `ConfigError` if layers that were named one by one would be left out like this.
    """

    transfers: ClassVar[str] = "features"
    dims: ClassVar[tuple[int, ...]] = (2, 4)  #: allowed dimensions: 2 for vectors (B, D), 4 for maps (B, C, H, W)

    def __init__(self, student: Layers, teacher: Layers) -> None:
        super().__init__()
        self.asked = {"student": listed("student", student), "teacher": listed("teacher", teacher)}

    def resolve(self, student: Roles, teacher: Roles) -> None:
        ours, theirs = layer_names(self.asked["student"], student), layer_names(self.asked["teacher"], teacher)
        count = min(len(ours), len(theirs))
        longer, roles = ("student", student) if len(ours) > count else ("teacher", teacher)
        if len(ours) != len(theirs) and set(self.asked[longer]) - set(ROLES) - set(roles):
            raise ConfigError(
                f"{self.symbol} compares each of the student's layers with one of the teacher's, "
                f"but got {len(ours)} ({', '.join(ours)}) and {len(theirs)} ({', '.join(theirs)})."
            )
        self.student_layers, self.teacher_layers = ours[-count:], theirs[-count:]

    def pairs(self, student: Output, teacher: Output | None) -> list[tuple[Tensor, Tensor]]:
        """Return each of the student's features with the teacher's that it is compared with.

        Raises `ConfigError` for a teacher without these features, or features of a kind the term cannot compare.
        """
        theirs = read(teacher, self.teacher_layers, "teacher", self.dims, self.symbol)
        ours = read(student, self.student_layers, "student", self.dims, self.symbol)
        for a, b, name, other in zip(ours, theirs, self.student_layers, self.teacher_layers, strict=True):
            if a.ndim != b.ndim:
                raise ConfigError(
                    f"{self.symbol} cannot compare the student's {name}, {tuple(a.shape[1:])} for each image, with the "
                    f"teacher's {other}, {tuple(b.shape[1:])}: choose two vectors or two feature maps."
                )
        return list(zip(ours, theirs, strict=True))


def read(output: Output | None, layers: Sequence[str], owner: str, dims: Sequence[int], symbol: str) -> list[Tensor]:
    """Return an output's taps by name, in order; raise `ConfigError` if one is missing or has other dimensions."""
    if output is None or any(name not in output.taps for name in layers):
        if owner == "student":
            raise ConfigError(
                f"{symbol} reads layers of the student ({', '.join(layers)}), which its network does not give. A term "
                "that replaces the student's network (SimKD) cannot be combined with one that reads its layers."
            )
        raise ConfigError(
            f"{symbol} reads layers of the {owner} ({', '.join(layers)}), but this run's {owner} gives only logits: "
            "choose a teacher that is one network (teacher=trained, self, checkpoint or ema)."
        )
    found = [output.taps[name] for name in layers]
    for name, tensor in zip(layers, found, strict=True):
        if tensor.ndim not in dims:
            kinds = {2: "vectors (batch, features)", 4: "feature maps (batch, channels, height, width)"}
            raise ConfigError(
                f"{symbol} compares {' or '.join(kinds[n] for n in dims)}, but layer {name!r} of the {owner} gives "
                f"{tuple(tensor.shape)}. Name another layer, or choose a network that has such layers."
            )
    return found


def layer_names(asked: Sequence[str], roles: Roles) -> tuple[str, ...]:
    """Replace the roles among `asked` by the names of their layers; what is no role is the name of a layer already."""
    if not isinstance(roles, Mapping):
        raise ConfigError(f"Expected `taps` to name layers by role, such as {{embedding: flatten}}, but got {roles!r}.")
    known = {role: listed(f"taps.{role}", layers) for role, layers in roles.items() if layers is not None}
    if stages := known.get("stages"):
        known = {"middle": (stages[(len(stages) - 1) // 2],), "final": (stages[-1],), **known}
    return tuple(name for word in asked for name in known.get(word, (word,)))


def listed(name: str, layers: Any) -> tuple[str, ...]:
    """Return one name or a list of names as a tuple, or raise `ConfigError`."""
    names = (layers,) if isinstance(layers, str) else layers
    if not isinstance(names, list | tuple) or not names or not all(isinstance(one, str) and one for one in names):
        raise ConfigError(f"Expected `{name}` to name one layer or a list of layers, but got {layers!r}.")
    return tuple(names)
