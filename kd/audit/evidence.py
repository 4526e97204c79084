"""What an audit judges: finished runs by seed, and where they come from."""

from dataclasses import dataclass, field

from kd.audit.settings import Settings
from kd.report.read import Run
from kd.schema import ComparisonConfig

SMOOTHING = "label smoothing"
#: the controls: which arm of its runs stands for it, and what that shows
CONTROLS: dict[str, tuple[str, str]] = {
    SMOOTHING: ("baseline", "the baseline with label smoothing 0.1, soft targets that are the same for every image"),
    "random teacher": ("student", "the student of an untrained teacher, whose soft targets know nothing"),
    "self-KD": ("student", "the student of a network of its own kind, trained as the baseline is"),
}


@dataclass(frozen=True)
class Failure:
    """A run that did not finish, and the command that tries it again."""

    seed: int
    command: str
    status: int
    error: str


@dataclass
class Evidence:
    """The runs of one configuration by seed, beside them those that they are compared with."""

    experiment: str
    command: str
    settings: Settings  # of these runs
    own: Settings | None  # the experiment's, as conf/experiment has it
    seeds: list[int]  # asked for
    comparisons: dict[str, ComparisonConfig]
    runs: dict[int, Run] = field(default_factory=dict)
    versus: dict[tuple[str, ...], dict[int, Run]] = field(default_factory=dict)
    itself: set[tuple[str, ...]] = field(default_factory=set)  # those of `versus` that are these very runs
    controls: dict[str, dict[int, Run]] | None = None  # None: not asked for
    same_as_student: list[str] = field(default_factory=list)  # controls that are what the experiment does
    failed: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
