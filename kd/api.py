"""`kd.distill`: distillation in plain Python, for any teacher, student and DataLoader, without configuration files."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from kd.build import complete, wrapped_around
from kd.callbacks import KeepBest
from kd.check import choice, integer, nearest
from kd.cli import conf_dir
from kd.data.batches import Batches
from kd.data.keyed import key_seed
from kd.distiller import Distiller
from kd.errors import ConfigError
from kd.losses.configure import build_objective, first_stage, first_stage_epochs
from kd.losses.objective import Objective
from kd.losses.term import Roles
from kd.metrics import test_metrics
from kd.optim import Schedule, constant
from kd.quiet import quiet
from kd.rules import PRECISIONS
from kd.schema import MethodConfig
from kd.seals import Unchanged
from kd.taps import Tapped
from kd.teachers import Frozen, NoTeacher, Teacher
from kd.types import Batch

Method = dict[str, Any]


@dataclass(frozen=True)
class Distilled:
    """What `distill` returns.

    student: the trained network, on the device where it was, in eval mode: the module that was passed in. Only `simkd`
        returns a new network, around a copy of it.
    metrics: `val` (accuracy, nll, epoch) and `test` (as in result.json), each None without its loader.
    history: the means of every epoch, e.g. {"stage": "main", "epoch": 1, "train/loss": ..., "val/accuracy": ...}.
    delivered: networks that a method trains beside the student, by name: `peer` of mutual learning.
    """

    student: nn.Module
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    delivered: dict[str, nn.Module] = field(default_factory=dict)


def method_config(name: str) -> Method:
    """Return a copy of conf/method/NAME.yaml as a plain dict, to be changed and passed to `distill`.

    Raises `ConfigError` for an unknown name, with those that exist.
    """
    files = {path.stem: path for path in (conf_dir() / "method").glob("*.yaml")}
    loaded = OmegaConf.to_container(OmegaConf.load(files[choice("method", name, files)]), resolve=True)
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items() if key != "defaults"}


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    train: Any,
    *,
    method: str | Method = "kd",
    temperature: float | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    epochs: int = 10,
    val: Any = None,
    test: Any = None,
    student_layers: Roles | None = None,
    teacher_layers: Roles | None = None,
    optimizer: Callable[..., Optimizer] | None = None,
    schedule: Schedule = constant,
    seed: int = 0,
    accelerator: str = "auto",
    precision: str = "32-true",
) -> Distilled:
    """Train `student` to do what `teacher` does, and return it with its metrics.

    The teacher is copied: its weights, its mode and its gradients stay as they are. With a `val` loader the epoch with
    the best validation accuracy is returned, else the last. The test set is read once, at the end.

    Args:
        student: any network (B, ...) -> logits (B, C); trained in place. In eval mode it is put into train mode;
            otherwise its layers' modes stay, so that you can freeze some.
        teacher: any network with the same classes; None for methods that learn without one. Mutual learning trains an
            untrained copy of it (or, if None, of the student) beside the student.
        train: a DataLoader of (image, target) or (image, target, index); `crd` needs the index of each image.
        method: a name from `python -m kd.list`, or a dict as `method_config(name)` returns it.
        temperature, alpha, beta: set these of the method, where it uses them.
        epochs: passes over `train`; a method with an `initial` stage has that stage's epochs before them.
        val, test: DataLoaders like `train`.
        student_layers, teacher_layers: names of layers by role, for methods that read layers, e.g. {"embedding":
            "hidden", "stages": ["layer1", "layer2"], "classifier": "fc"}.
        optimizer: makes an optimiser of a list of parameters; None is AdamW with learning rate 1e-3.
        schedule: makes a learning-rate schedule of (optimizer, steps_per_epoch, epochs); see `kd.optim`.
        seed: of what the method draws and of dropout. The order of the images is the loader's own.
        accelerator, precision: as in Lightning's Trainer.

    Raises:
        ConfigError: an argument, a shape or a layer's name does not fit; raised before any training.
        NumericError: training produced NaN or infinity.
    """
    quiet()
    integer("epochs", epochs, low=1)
    integer("seed", seed)
    choice("precision", precision, PRECISIONS)
    loaders = {name: Batches(loader, name) for name, loader in (("train", train), ("val", val), ("test", test))}
    config = _checked(method_config(method) if isinstance(method, str) else copy.deepcopy(method))
    given = {"temperature": temperature, "alpha": alpha, "beta": beta}
    config |= {name: value for name, value in given.items() if value is not None}
    roles = {"student": student_layers or {}, "teacher": teacher_layers or {}}
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ConfigError("The student has no parameter that requires a gradient: nothing would be trained.")
    home = next(student.parameters()).device
    stages = [config] if (first := first_stage(config)) is None else [first, config]
    objectives = [build_objective(stage, roles["student"], roles["teacher"]) for stage in stages]
    lengths = [epochs] if first is None else [first_stage_epochs(config, epochs), epochs]
    if not student.training:  # otherwise its modes stay: some of its layers may be frozen
        student.train()

    history: list[dict[str, Any]] = []
    learned: dict[str, Tensor] = {}
    try:
        for stage, objective, length in zip(stages, objectives, lengths, strict=True):
            taught_by = _taught_by(objective, teacher)
            tapped = _build(objective, student, teacher, taught_by, loaders["train"], roles, seed)
            objective.carry_over(learned)
            module = Distiller(
                "student", tapped, taught_by, objective, optimizer or partial(AdamW, lr=1e-3), schedule, seed=seed,
                image_shape=next(iter(loaders["train"])).image.shape[1:],
            )  # fmt: skip
            val_loader = loaders["val"] if stage is config and val is not None else None
            best = _fit(module, loaders["train"], val_loader, length, history, accelerator, precision)
            learned = {name: value.cpu() for name, value in objective.terms.state_dict().items()}
    finally:
        student.to(memory_format=torch.contiguous_format).to(home)
    trained = tapped.network.to(home).eval()
    return Distilled(
        student=trained,
        metrics={"val": best, "test": _evaluate(trained, teacher, loaders["test"], home)},
        history=history,
        delivered={name: network.to(home).eval() for name, network in objective.delivered().items()},
    )


def _checked(method: Any) -> Method:
    """Return a method's configuration, or raise `ConfigError` if it is no dict or has unknown keys."""
    known = [one.name for one in fields(MethodConfig)]
    if not isinstance(method, dict):
        raise ConfigError(
            f"Expected `method` to be a name or a dict as `method_config` returns it, but got {method!r}."
        )
    for key in method:
        if key not in known:
            raise ConfigError(f"Unknown key `method.{key}`.{nearest(key, known)} Known: {', '.join(known)}.")
    return method


def _taught_by(objective: Objective, teacher: nn.Module | None) -> Teacher:
    if not objective.needs_teacher:
        return NoTeacher()
    if teacher is None:
        raise ConfigError("This method learns from a teacher, but `teacher` is None.")
    return Frozen(Tapped(copy.deepcopy(teacher), objective.layers("teacher"), owner="teacher"))


def _build(
    objective: Objective,
    student: nn.Module,
    teacher: nn.Module | None,
    taught_by: Teacher,
    train: Batches,
    roles: Mapping[str, Roles],
    seed: int,
) -> Tapped:
    """Let the objective build its parts on the CPU, for blank images of the loader's shape; try it on a real batch."""
    batch = Batch(*(part.cpu() for part in next(iter(train))))
    image = torch.zeros_like(batch.image[:2])
    student.cpu()
    taught_by.to(torch.device("cpu"))
    tapped = Tapped(student, objective.layers("student"), owner="student")
    with torch.no_grad():
        logits = Tapped(copy.deepcopy(student)).eval()(image).logits
    if logits.ndim != 2:
        raise ConfigError(
            f"Expected the student to return logits (batch, classes), but got shape {tuple(logits.shape)}."
        )
    torch.manual_seed(key_seed(seed, 0))  # a peer must not start like a student that the user seeded with this number
    tapped, _ = complete(
        objective, tapped, taught_by, image, {}, lambda model: wrapped_around(copy.deepcopy(student), model),
        num_classes=logits.shape[1], seed=seed, student_roles=roles["student"], teacher_roles=roles["teacher"],
        transfer_set=train.transfer_set, new_peer=partial(_untrained, student if teacher is None else teacher),
    )  # fmt: skip
    tried = Tapped(copy.deepcopy(tapped.network), tapped.names).eval()
    with torch.no_grad():
        objective.eval()(tried(batch.image), taught_by(batch), batch)
    objective.train()
    return tapped


def _untrained(network: nn.Module) -> nn.Module:
    """Return a copy of a network that has forgotten its weights."""
    fresh = copy.deepcopy(network).cpu()
    for module in fresh.modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is None:
            raise ConfigError(
                f"Mutual learning trains an untrained copy of {type(network).__name__}, but {type(module).__name__} "
                "in it has no `reset_parameters()` that would make it so. Give it one."
            )
        reset()
    return fresh


def _fit(
    module: Distiller,
    train: Batches,
    val: Batches | None,
    epochs: int,
    history: list[dict[str, Any]],
    accelerator: str,
    precision: str,
) -> dict[str, Any] | None:
    """Train one stage and add its epochs to the history; return the selected epoch's validation metrics, if any."""
    best = KeepBest()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        callbacks=[best, Unchanged(), _History(history, module.objective.where == "method.initial.terms")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    torch.manual_seed(module.seed)
    trainer.fit(module, train, val)
    best.restore(module)
    found = best.validation()
    return None if found is None or best.epoch is None else {**found, "epoch": best.epoch + 1}


@torch.no_grad()
def _evaluate(
    student: nn.Module, teacher: nn.Module | None, test: Batches, device: torch.device
) -> dict[str, Any] | None:
    """Read the test set once; None if there is none."""
    if test.loader is None:
        return None
    ours = Frozen(Tapped(copy.deepcopy(student)))
    theirs = None if teacher is None else Frozen(Tapped(copy.deepcopy(teacher))).to(device)
    logits, teacher_logits, targets = [], [], []
    for batch in test:
        moved = Batch(*(part.to(device) for part in batch))
        logits.append(ours.output(moved).logits.float().cpu())
        targets.append(batch.target.cpu())
        if theirs is not None:
            teacher_logits.append(theirs.output(moved).logits.float().cpu())
    return test_metrics(torch.cat(logits), torch.cat(targets), torch.cat(teacher_logits) if teacher_logits else None)


class _History(Callback):
    """Adds every epoch's means to a list."""

    def __init__(self, epochs: list[dict[str, Any]], is_initial: bool) -> None:
        self.epochs = epochs
        self.stage = "initial" if is_initial else "main"

    def on_train_epoch_end(self, trainer: L.Trainer, module: Distiller) -> None:  # type: ignore[override]
        epoch: dict[str, Any] = {"stage": self.stage, "epoch": trainer.current_epoch + 1}
        for split, means in module.epoch_means.items():
            epoch |= {f"{split}/{name}": value for name, value in means.items()}
        self.epochs.append(epoch)
