"""The shape of a configuration: a closed root.

Groups that name a class with `_target_` (data, student, optim, the terms of a method) are open here; `kd.build` holds
them against the signature of the class they name. `kd.rules` has what values must fulfil.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_origin

from omegaconf import MISSING


@dataclass
class TeacherConfig:
    """Where the soft targets come from. Null means: as for the student."""

    kind: str = MISSING
    model: Any = None
    path: Any = None  # a file, or for an ensemble a list of files, with weights trained elsewhere
    optim: Any = None
    augment: str | None = None
    max_epochs: int | None = None
    seed: int = MISSING
    label_smoothing: float = 0.0
    allow_weak: bool = False  # let one teach that knows no more than guessing
    cache: str = "auto"
    generations: int | None = None
    size: int | None = None
    decay: float | None = None
    correct_probability: float | None = None


@dataclass
class InitialConfig:
    """A first stage with terms of its own. Null epochs: an eighth of trainer.max_epochs, rounded up."""

    epochs: int | None = None
    terms: dict[str, Any] = MISSING


@dataclass
class MethodConfig:
    """What the student minimises; see `kd.losses.configure.build_objective`."""

    name: str = MISSING
    temperature: float | None = None
    alpha: float | None = None
    beta: float | None = None
    initial: InitialConfig | None = None
    terms: dict[str, Any] = MISSING


@dataclass
class BaselineConfig:
    label_smoothing: float = 0.0


@dataclass
class OptimConfig:
    optimizer: dict[str, Any] = MISSING
    schedule: dict[str, Any] = MISSING


@dataclass
class TrainerConfig:
    max_epochs: int = MISSING
    accelerator: str = "auto"
    devices: Any = 1
    strategy: str = "auto"
    num_nodes: int = 1
    precision: str = "32-true"
    gradient_clip_val: float | None = None
    threads: int | None = None
    compile: Any = "auto"
    steps_per_call: int = 1
    checkpoint_minutes: float | None = 5.0
    deterministic: bool = False


@dataclass
class LoggerConfig:
    kind: str = "auto"
    project: str = "kd"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class StoreConfig:
    root: str = MISSING


@dataclass
class ComparisonConfig:
    """One hypothesis: `metric` of `arm` is above that of the arm `minus`, in pairs of one seed.

    With `versus`, command-line overrides, the second number comes from the run that these would make.
    """

    statement: str = MISSING
    metric: str = "accuracy"
    arm: str = "student"
    minus: str = "baseline"
    versus: list[str] = field(default_factory=list)


@dataclass
class ClaimRowConfig:
    """Numbers published for certain settings: `when` has a value for each of some configuration keys."""

    when: dict[str, Any] = MISSING
    published: dict[str, dict[str, Any]] = MISSING


@dataclass
class ClaimConfig:
    """A published result: for each arm the metrics that were published, e.g. {student: {errors: 74}}.

    `method` is the one that the student's numbers were published for (null: any). See `kd.claims`.
    """

    source: str = MISSING
    statement: str = MISSING
    method: str | None = "kd"
    published: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[ClaimRowConfig] = field(default_factory=list)
    comparisons: dict[str, ComparisonConfig] = field(default_factory=dict)


@dataclass
class RunConfig:
    experiment: str = MISSING
    seed: int = MISSING
    data: dict[str, Any] = MISSING
    student: dict[str, Any] = MISSING
    teacher: TeacherConfig = MISSING
    method: MethodConfig = MISSING
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    optim: OptimConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    store: StoreConfig = MISSING
    claim: ClaimConfig | None = None
    latency: bool = True
    force: bool = False
    fork: Any = None  # a run folder; after `check` a dict of folder and sha256 (see `kd.fork`)
    join: bool = False
    sweep: str = "separate"
    debug: bool = False


def restored(content: Mapping[str, Any]) -> RunConfig:
    """Return the checked configuration of which this is the plain form (`asdict`), without checking it again."""
    config: RunConfig = _restored(RunConfig, content)
    return config


def _restored(kind: Any, value: Any) -> Any:
    """A value of plain containers as what an annotation says: a dataclass, or a list or mapping of them."""
    inside = next((part for part in (kind, *get_args(kind)) if is_dataclass(part)), None)
    if inside is None or value is None:
        return value
    if get_origin(kind) is list:
        return [_restored(inside, one) for one in value]
    if get_origin(kind) is dict:
        return {key: _restored(inside, one) for key, one in value.items()}
    assert isinstance(inside, type)
    return inside(**{one.name: _restored(one.type, value[one.name]) for one in fields(inside)})
