"""`kd.distill`: distillation in plain Python, for any teacher, student and DataLoader, without configuration files."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import lightning as L
import torch
from hydra.utils import get_class
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from kd.build import sampled
from kd.callbacks import KeepBest
from kd.check import choice, integer
from kd.cli import conf_dir
from kd.distiller import Distiller
from kd.errors import ConfigError
from kd.losses.configure import build_objective
from kd.losses.objective import Objective
from kd.losses.term import Roles
from kd.metrics import test_metrics
from kd.optim import Schedule, constant
from kd.quiet import quiet
from kd.schema import PRECISIONS
from kd.taps import Tapped
from kd.teachers import Frozen, NoTeacher, Teacher
from kd.types import Batch

Method = dict[str, Any]


@dataclass(frozen=True)
class Distilled:
    """What `distill` returns.

    student: the trained network, on the device where it was. `simkd` returns a network around it; every other method
        returns the module that was passed in.
    metrics: `val` (accuracy, nll, epoch) and `test` (as in result.json), each None without its loader.
    history: the means of every epoch, e.g. {"epoch": 1, "train/loss": ..., "train/kd": ..., "val/accuracy": ...}.
    delivered: networks that a method trains beside the student, by name: `peer` of mutual learning.
    """

    student: nn.Module
    metrics: dict[str, Any]
    history: list[dict[str, float]]
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
        student: any network (B, ...) -> logits (B, C); trained in place.
        teacher: any network with the same classes; None for methods that learn without one. Mutual learning trains a
            copy of it beside the student, from the weights that it has.
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
    choice("precision", precision, PRECISIONS)
    loaders = {name: _Batches(loader, name) for name, loader in (("train", train), ("val", val), ("test", test))}
    config = method_config(method) if isinstance(method, str) else copy.deepcopy(method)
    given = {"temperature": temperature, "alpha": alpha, "beta": beta}
    config |= {name: value for name, value in given.items() if value is not None}
    roles = {"student": student_layers or {}, "teacher": teacher_layers or {}}
    home = next((parameter.device for parameter in student.parameters()), torch.device("cpu"))
    fit = partial(
        _fit, optimizer=optimizer or partial(AdamW, lr=1e-3), schedule=schedule, seed=seed, loaders=loaders,
        accelerator=accelerator, precision=precision,
    )  # fmt: skip

    learned: dict[str, Tensor] = {}
    for stage in _stages(config):
        stage_epochs = epochs if stage is config else config["initial"].get("epochs") or math.ceil(epochs / 8)
        objective = build_objective(stage, roles["student"], roles["teacher"])
        taught_by = _taught_by(objective, teacher)
        tapped, objective = _build(objective, student, teacher, taught_by, loaders["train"], roles, seed)
        objective.carry_over(learned)
        history, best = fit(tapped, taught_by, objective, epochs=stage_epochs, select=stage is config)
        learned = {name: value.cpu() for name, value in objective.terms.state_dict().items()}
    trained = tapped.network.to(home).eval()
    return Distilled(
        student=trained,
        metrics={"val": best, "test": _evaluate(trained, teacher, loaders["test"], home)},
        history=history,
        delivered={name: network.to(home) for name, network in objective.delivered().items()},
    )


def _stages(config: Method) -> list[Method]:
    """The method's first stage, if it has one, and the method itself."""
    initial = config.get("initial")
    return [{"name": config.get("name"), "terms": initial["terms"]}, config] if initial else [config]


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
    train: "_Batches",
    roles: Mapping[str, Roles],
    seed: int,
) -> tuple[Tapped, Objective]:
    """Let the objective build its parts on the CPU, for blank images of the loader's shape; try it on a real batch."""
    batch = next(iter(train))
    image = torch.zeros_like(batch.image[:2])
    student.cpu()
    taught_by.to(torch.device("cpu"))
    tapped = Tapped(student, objective.layers("student"), owner="student")
    logits = Tapped(student).eval()(image).logits
    if logits.ndim != 2:
        raise ConfigError(
            f"Expected the student to return logits (batch, classes), but got shape {tuple(logits.shape)}."
        )
    facts = {
        "num_classes": logits.shape[1],
        "seed": seed,
        "student_roles": roles["student"],
        "teacher_roles": roles["teacher"],
        "transfer_set": train.transfer_set,
        "new_peer": partial(copy.deepcopy, student if teacher is None else teacher),
    }
    torch.manual_seed(seed)
    setting = sampled(tapped, taught_by, image, **facts)
    if (wrapped := objective.wrap({}, setting)) is not None:
        arguments = {name: value for name, value in wrapped.items() if name not in ("_target_", "network")}
        tapped = Tapped(get_class(wrapped["_target_"])(network=student, **arguments))
        setting = sampled(tapped, taught_by, image, **facts)
    objective.build(setting)
    with torch.no_grad():
        objective.eval()(tapped.eval()(batch.image), taught_by(batch), batch)
    objective.train()
    tapped.train()
    return tapped, objective


def _fit(
    student: Tapped,
    teacher: Teacher,
    objective: Objective,
    *,
    optimizer: Callable[..., Optimizer],
    schedule: Schedule,
    seed: int,
    loaders: Mapping[str, "_Batches"],
    accelerator: str,
    precision: str,
    epochs: int,
    select: bool,
) -> tuple[list[dict[str, float]], dict[str, Any] | None]:
    """Train one stage; return its history, and the selected epoch's validation metrics if it selects one."""
    module = Distiller("student", student, teacher, objective, optimizer, schedule, seed=seed)
    validates = select and loaders["val"].loader is not None
    best, history = KeepBest(), _History()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator=accelerator,
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        callbacks=[best, history],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    torch.manual_seed(seed)
    trainer.fit(module, loaders["train"], loaders["val"] if validates else None)
    best.restore(module)
    found = best.validation()
    return history.epochs, None if found is None or best.epoch is None else {**found, "epoch": best.epoch + 1}


@torch.no_grad()
def _evaluate(
    student: nn.Module, teacher: nn.Module | None, test: "_Batches", device: torch.device
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


class _Batches:
    """A user's DataLoader as `Batch`es; the index is -1 where the loader gives none."""

    def __init__(self, loader: Any, name: str) -> None:
        self.loader = loader
        self.name = name
        if loader is not None and (not hasattr(loader, "__len__") or len(loader) == 0):
            raise ConfigError(f"Expected `{name}` to be a DataLoader with at least one batch, but got {loader!r}.")
        if loader is None and name == "train":
            raise ConfigError("Expected `train` to be a DataLoader, but got None.")

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for parts in self.loader:
            if not isinstance(parts, tuple | list) or len(parts) not in (2, 3):
                raise ConfigError(f"Expected `{self.name}` to give (image, target) or (image, target, index).")
            image, target = parts[0], parts[1].long()
            yield Batch(image, target, parts[2] if len(parts) == 3 else torch.full_like(target, -1))

    def transfer_set(self) -> tuple[Tensor, Tensor]:
        batches = [(batch.index, batch.target) for batch in self]
        index, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
        if (index < 0).any():
            raise ConfigError(
                "This method remembers every image: let the DataLoader give (image, target, index), where index is the "
                "image's place in the dataset."
            )
        return index, target


class _History(Callback):
    """Every epoch's means."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: Distiller) -> None:  # type: ignore[override]
        means = {
            f"{split}/{name}": value for split, found in module.epoch_means.items() for name, value in found.items()
        }
        self.epochs.append({"epoch": trainer.current_epoch + 1, **means})
