"""Every rule of a configuration: its types, and what its values must be, also together.

Nothing in this file imports torch, so that a mistake is reported within a second.
"""

import importlib.util
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from kd import claims, fork, secrets, trust
from kd.check import choice, hyper_parameters, integer, name, nearest, number
from kd.errors import ConfigError
from kd.schema import RunConfig, TeacherConfig, TrainerConfig

#: the kinds of teacher, each with the settings that belong to it alone
TEACHERS: dict[str, tuple[str, ...]] = {
    "trained": (),
    "checkpoint": (),
    "self": ("generations",),
    "ensemble": ("size",),
    "ema": ("decay",),
    "virtual": ("correct_probability",),
    "random": (),
    "none": (),
}
TRAINED = ("trained", "self", "ensemble", "random")  # by the run itself, unless teacher.path is given
CACHES = ("auto", "off", "only")
#: kinds of teacher without logits to keep, and why
UNCACHED = {
    "none": "there is no teacher",
    "ema": "it changes with every step",
    "virtual": "it has no network whose logits could be kept",
}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
COMPILING = ("off", "auto", "on")
SWEEPS = ("separate", "together", "stacked", "looped")
STRATEGIES = ("auto", "ddp")
LOGGERS = ("auto", "csv", "wandb", "trackio", "tensorboard")


def check(cfg: DictConfig) -> RunConfig:
    """Return the configuration as plain typed objects, or raise `ConfigError` for the first rule it breaks."""
    try:
        # through plain containers: a key added with `+` would keep its place in a config that is typed already
        plain = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), plain)
        config: RunConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except ConfigKeyError as error:
        raise ConfigError(unknown_key(str(error.full_key), cfg)) from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    content = asdict(config)
    trust.check_names(content)
    secrets.refuse_in_configuration(content)
    config.fork = fork.find(config.fork)
    check_rules(config)
    return config


def check_rules(config: RunConfig) -> None:
    """Raise `ConfigError` for the first rule that a configuration of the right types breaks."""
    _check_common(config)
    hyper_parameters(vars(config.method))
    if config.method.initial and config.method.initial.epochs is not None:
        integer("method.initial.epochs", config.method.initial.epochs, low=1)
    _check_teacher(config.teacher)
    _check_data(config.data, config.teacher)
    if config.claim is not None:
        claims.check(config.claim, config)


def unknown_key(key: str, cfg: DictConfig | None) -> str:
    """Say that `key` is unknown, name the nearest known key and list its known siblings."""
    parent, _, last = key.rpartition(".")
    is_ours = not key.startswith("hydra.")
    while is_ours and parent and cfg is not None and not isinstance(_at(cfg, parent), DictConfig):
        key = parent  # itself unknown: begin there
        parent, _, last = key.rpartition(".")
    node = _at(cfg, parent) if cfg is not None and parent else cfg
    siblings = {str(name) for name in node} - {last, "hydra"} if isinstance(node, DictConfig) else set()
    if not parent:
        siblings |= set(RunConfig.__dataclass_fields__)
    prefix = f"{parent}." if parent else ""
    known = f" Known keys{f' of {parent}' if parent else ''}: {', '.join(sorted(siblings))}." if siblings else ""
    return f"Unknown key {key!r}.{nearest(prefix + last, [prefix + name for name in sorted(siblings)])}{known}"


def _at(cfg: DictConfig, key: str) -> Any:
    """What a configuration has at a dotted place; None where it has no such place."""
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part) if isinstance(node, DictConfig) else None
    return node


def _check_common(config: RunConfig) -> None:
    name("experiment", config.experiment)  # part of paths
    integer("seed", config.seed, high=2**32 - 1)
    choice("sweep", config.sweep, SWEEPS)
    if not config.store.root:
        raise ConfigError("Expected `store.root` to name a folder, but it is empty.")
    trainer = config.trainer
    integer("trainer.max_epochs", trainer.max_epochs, low=1)
    if trainer.threads is not None:
        integer("trainer.threads", trainer.threads, low=1)
    choice("trainer.precision", trainer.precision, ("auto", *PRECISIONS))
    if isinstance(trainer.compile, bool):  # what YAML makes of on and off
        trainer.compile = "on" if trainer.compile else "off"
    choice("trainer.compile", trainer.compile, COMPILING)
    kind = choice("logger", config.logger.kind, LOGGERS)
    name("logger.project", config.logger.project)
    if kind not in ("auto", "csv") and importlib.util.find_spec(kind) is None:
        raise ConfigError(f"logger={kind} needs a package that is not installed: pip install {kind}")
    number("baseline.label_smoothing", config.baseline.label_smoothing, low=0, high=1)
    if trainer.checkpoint_minutes is not None:
        number("trainer.checkpoint_minutes", trainer.checkpoint_minutes, above=0)
    if trainer.gradient_clip_val is not None:
        number("trainer.gradient_clip_val", trainer.gradient_clip_val, above=0)
    optimizer = config.optim.optimizer
    fused = optimizer.get("fused") or (optimizer.get("optimizer") or {}).get("fused")
    if trainer.precision == "16-mixed" and trainer.gradient_clip_val and fused:
        raise ConfigError(
            "trainer.gradient_clip_val with trainer.precision=16-mixed needs optim.optimizer.fused=false: a fused "
            "optimiser unscales the gradients only after they would have been clipped."
        )
    _check_devices(trainer)


def _check_devices(trainer: TrainerConfig) -> None:
    devices, strategy = trainer.devices, str(trainer.strategy)
    if strategy.startswith(("fsdp", "deepspeed")):
        raise ConfigError(
            f"trainer.strategy={strategy} divides networks among GPUs that are too small for them. Those here do fit, "
            "and every process keeps them whole: choose trainer=ddp."
        )
    choice("trainer.strategy", strategy, STRATEGIES)
    integer("trainer.num_nodes", trainer.num_nodes, low=1)
    if integer("trainer.steps_per_call", trainer.steps_per_call, low=1) > 1 and strategy == "ddp":
        raise ConfigError(
            f"trainer.steps_per_call={trainer.steps_per_call} saves a single process the framework's work between two "
            "steps; processes that share every batch (trainer=ddp) must meet at each step. Use "
            "trainer.steps_per_call=1, or one device."
        )
    listed = isinstance(devices, list) and bool(devices) and all(type(one) is int and one >= 0 for one in devices)
    if strategy == "auto":
        if trainer.num_nodes > 1 or not (devices == 1 or (listed and len(devices) == 1)):
            raise ConfigError(
                "Expected `trainer.devices` to be 1, or a list with one device's number such as [0], but got "
                f"{devices!r} on {trainer.num_nodes} machine(s): a run trains on one device. For several choose "
                "trainer=ddp."
            )
        return
    if not (devices in ("auto", -1) or listed or (type(devices) is int and devices >= 1)):
        raise ConfigError(
            "Expected `trainer.devices` to be a number of devices, auto for all GPUs, or a list of devices' numbers "
            f"such as [0, 1], but got {devices!r}."
        )
    if listed and len(set(devices)) < len(devices):
        raise ConfigError(f"`trainer.devices` names a device twice: {devices}.")
    choice("trainer.accelerator with trainer=ddp", trainer.accelerator, ("auto", "cpu", "gpu", "cuda"))


def _check_data(data: dict[str, Any], teacher: TeacherConfig) -> None:
    if data.get("omit") and data.get("keep"):
        raise ConfigError(
            f"Set `data.omit` or `data.keep`, not both (got omit={data['omit']}, keep={data['keep']}): "
            "each is the complement of the other."
        )
    for arm in data.get("omit_from") or []:
        choice("arm in `data.omit_from`", arm, claims.ARMS)
    omits = data.get("omit") or data.get("keep")
    if omits and "teacher" in (data.get("omit_from") or []) and (teacher.kind not in TRAINED or teacher.path):
        raise ConfigError(
            f"`data.omit_from` names the teacher, but teacher={teacher.kind} is not trained here: nothing can be kept "
            f"from it. Choose teacher={', '.join(TRAINED)} without teacher.path, or leave it out of data.omit_from."
        )
    if data.get("omit_bias") is not None:
        number("data.omit_bias", data["omit_bias"])
        if not omits:
            raise ConfigError("`data.omit_bias` corrects omitted classes; name them with `data.omit` or `data.keep`.")


def _check_teacher(teacher: TeacherConfig) -> None:
    kind = choice("teacher", teacher.kind, TEACHERS)
    for owner, settings in TEACHERS.items():
        for setting in settings:
            value = getattr(teacher, setting)
            if value is not None and owner != kind:
                raise ConfigError(f"`teacher.{setting}` belongs to teacher={owner}, but this run has teacher={kind}.")
            if value is None and owner == kind:
                raise ConfigError(f"teacher={kind} needs `teacher.{setting}`.")
    if kind == "checkpoint" and not teacher.path:
        raise ConfigError("teacher=checkpoint needs `teacher.path`: a .safetensors file, or a .pt file of weights.")
    if teacher.path is not None and kind not in ("trained", "checkpoint", "self", "ensemble"):
        raise ConfigError(f"`teacher.path` has no meaning for teacher={kind}; remove it or choose teacher=checkpoint.")
    if teacher.path is not None and not isinstance(teacher.path, list if kind == "ensemble" else str):
        expected = "a list of files" if kind == "ensemble" else "the name of one file"
        raise ConfigError(f"Expected `teacher.path` to be {expected}, but got {teacher.path!r}.")
    if teacher.optim is not None and {"optimizer", "schedule"} - set(teacher.optim):
        raise ConfigError(
            "`teacher.optim` needs an `optimizer` and a `schedule`, as `optim` has them; add a whole one with "
            "+optim@teacher.optim=sgd and then change it, e.g. teacher.optim.optimizer.lr=0.1."
        )
    integer("teacher.seed", teacher.seed, high=2**32 - 1)
    number("teacher.label_smoothing", teacher.label_smoothing, low=0, high=1)
    if choice("teacher.cache", teacher.cache, CACHES) == "only" and kind in UNCACHED:
        raise ConfigError(f"`teacher.cache=only` has no meaning for teacher={kind}: {UNCACHED[kind]}. Use auto or off.")
    if teacher.max_epochs is not None:
        integer("teacher.max_epochs", teacher.max_epochs, low=1)
    if teacher.generations is not None:
        integer("teacher.generations", teacher.generations, low=1)
    if teacher.size is not None:
        integer("teacher.size", teacher.size, low=2)
    if teacher.decay is not None:
        number("teacher.decay", teacher.decay, low=0, high=1)
    if teacher.correct_probability is not None:
        number("teacher.correct_probability", teacher.correct_probability, above=0, high=1)
