"""The table of all methods in docs/methods.md: what each needs, what a step costs, and whether it trains.

    python -m benchmarks.methods            write docs/methods.md from docs/methods.json
    python -m benchmarks.methods cost       measure the steps first (ten minutes)
    python -m benchmarks.methods accuracy   first train what is missing of experiment=cifar_small (two hours)

Cost: one process, one thread, methods in turn in every round; a method's figure is the median over the rounds of its
seconds divided by plain KD's in the same round. Accuracy: result.json of every method and seed.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kd import method_config
from kd.build import complete, wrapped_around
from kd.cli import conf_dir
from kd.losses.configure import build_objective, first_stage
from kd.nets.cost import parameters
from kd.taps import Tapped
from kd.teachers import Frozen
from kd.types import Batch

ROOT = Path(__file__).parents[1]
DATA, PAGE = ROOT / "docs" / "methods.json", ROOT / "docs" / "methods.md"
STUDENT, TEACHER, BATCH, ROUNDS = "resnet8x4", "resnet32x4", 64, 9
SEEDS = (0, 1, 2)
METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))


class Step:
    """One training step of a method's stage on random images: the cost does not depend on what they show."""

    def __init__(self, name: str, stage: str) -> None:
        config = first_stage(method_config(name)) if stage == "initial" else method_config(name)
        assert config is not None
        networks, roles = zip(*(network(model) for model in (STUDENT, TEACHER)), strict=True)
        self.objective = build_objective(config, *roles)
        self.teacher = Frozen(Tapped(networks[1], self.objective.layers("teacher")))
        self.student = Tapped(networks[0], self.objective.layers("student"))
        blank, own = torch.zeros(2, 3, 32, 32), parameters(self.student)
        self.student, _ = complete(
            self.objective, self.student, self.teacher, blank, {}, lambda model: wrapped_around(networks[0], model),
            num_classes=10, student_roles=roles[0], teacher_roles=roles[1],
            transfer_set=lambda: (torch.arange(50_000), torch.arange(50_000) % 10),
            new_peer=lambda: network(TEACHER)[0],
        )  # fmt: skip
        trained = [p for p in (*self.student.parameters(), *self.objective.parameters()) if p.requires_grad]
        self.extra_parameters = sum(p.numel() for p in trained) - own
        self.optimizer = torch.optim.SGD(trained, lr=1e-4)
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(BATCH, 3, 32, 32, generator=generator)
        self.batch = Batch(image, torch.arange(BATCH) % 10, torch.arange(BATCH))

    def seconds(self) -> float:
        started = time.perf_counter()
        teacher = self.teacher(self.batch) if self.objective.needs_teacher else None
        student = self.student(self.batch.image)
        loss, _ = self.objective(student, teacher, self.batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return time.perf_counter() - started


def network(model: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """An untrained network of conf/model for CIFAR-10, and its layers by role."""
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{model}.yaml"))
    assert isinstance(node, dict)
    roles = node.pop("taps")
    return instantiate(node, num_classes=10, image_shape=(3, 32, 32), _convert_="all"), roles


def measured_cost() -> dict[str, dict[str, float]]:
    """Seconds per step relative to plain KD's, and extra trained parameters, of every method (and first stage)."""
    torch.set_num_threads(1)
    stages = [(name, "main") for name in METHODS]
    stages += [(name, "initial") for name in METHODS if "initial" in method_config(name)]
    steps = {stage: Step(*stage) for stage in stages}
    rounds = []
    for number in range(ROUNDS + 1):
        rounds.append({stage: step.seconds() for stage, step in steps.items()})
        print(f"round {number} of {ROUNDS}: kd {rounds[-1]['kd', 'main']:.2f} s per step", flush=True)
    cost: dict[str, dict[str, float]] = {name: {} for name in METHODS}
    for (name, stage), step in steps.items():
        ratios = [times[name, stage] / times["kd", "main"] for times in rounds[1:]]  # the first one warms up
        cost[name][stage] = statistics.median(ratios)
        cost[name]["extra_parameters"] = max(step.extra_parameters, cost[name].get("extra_parameters", 0))
    return cost


def measured_accuracy() -> dict[str, dict[str, list[float | None]]]:
    """Test accuracies of every method on experiment=cifar_small, seed by seed; trains what is missing."""
    for name in METHODS:
        if name in (found := finished_runs()) and all(None not in values for values in found[name].values()):
            continue
        command = f"-m kd.run -m experiment=cifar_small method={name} seed={','.join(map(str, SEEDS))} logger=csv"
        print(f"python {command}", flush=True)
        subprocess.run([sys.executable, *command.split()], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return finished_runs()


def finished_runs() -> dict[str, dict[str, list[float | None]]]:
    """Test accuracies by method and arm, in the order of the seeds; None for a seed that has not run."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for name in METHODS:
        for path in sorted(ROOT.glob("outputs/cifar_small/sweep-*/*/result.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            if result["method"]["name"] != name or result["seed"] not in SEEDS:
                continue
            runs = found.setdefault(name, {arm: [None] * len(SEEDS) for arm in result["arms"]})
            for arm, block in result["arms"].items():
                runs[arm][SEEDS.index(result["seed"])] = block["test"]["accuracy"]
    return found


def measure(what: str) -> None:
    """Measure one part of docs/methods.json anew and leave the other as it is."""
    content = json.loads(DATA.read_text(encoding="utf-8")) if DATA.is_file() else {}
    if what == "cost":
        device = f"cpu, 1 thread ({os.cpu_count()} cores), {platform.machine()}, torch {torch.__version__}"
        setup = {"pair": [TEACHER, STUDENT], "batch": BATCH, "rounds": ROUNDS, "device": device}
        content |= {"cost_setup": setup, "cost": measured_cost()}
    else:
        content |= {"seeds": list(SEEDS), "accuracy": measured_accuracy()}
    DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# --- the page ---------------------------------------------------------------------------------------------------------


INTRODUCTION = """# All methods

Written by `python -m benchmarks.methods` from `docs/methods.json`. Each method is one file in `kd/losses/`, whose
docstrings state the equation, the source, and where published code departs from the paper, and one in `conf/method/`.

- **step**: a training step's time over plain KD's, {teacher} to {student}, batch {batch}, the median of {rounds} rounds
  in one process ({device}), as `python -m benchmarks.methods cost` measured it. In brackets, a step of the first stage.
- **parameters**: what the method trains beside the student of {student}.
- **accuracy**: mean and standard deviation of the test accuracy over {seeds} seeds of `python -m kd.run
  experiment=cifar_small method=NAME`, as `python -m benchmarks.methods accuracy` collected it: the same 3,000 images of
  CIFAR-10, 8 epochs and networks (resnet20 to resnet8) for all. **A sanity check that every method trains, not a
  ranking**: the weights are those published for other networks, 240 epochs and SGD; so short a training leaves the
  teacher poor; warm-ups of 20 epochs never end; and a first stage comes on top of the 8 epochs.

| method | what it is | transfers | reads and needs | step | parameters | accuracy |
|---|---|---|---|--:|--:|--:|"""


def facts(name: str) -> tuple[str, str]:
    """What a method transfers and what it needs, read from its YAML and its terms."""
    config = method_config(name)
    stages = [stage for stage in (first_stage(config), config) if stage is not None]
    terms = [term for stage in stages for term in build_objective(stage).terms.values()]
    transfers = dict.fromkeys(str(term.transfers) for term in terms if term.transfers != "labels")
    layers = dict.fromkeys(layer for term in terms for layer in (*term.student_layers, *term.teacher_layers))
    needs = [", ".join(layers)] if layers else []
    needs += ["two stages"] if "initial" in config else []
    needs += ["a peer"] if any(term.needs_peer for term in terms) else []
    needs += ["a memory of all images"] if any(term.remembers for term in terms) else []
    if not any(term.needs_teacher or term.needs_peer for term in terms):
        needs.append("no teacher")
    return ", ".join(transfers) or "-", "; ".join(needs) or "-"


def render(content: dict[str, Any]) -> str:
    """Return docs/methods.md."""
    setup = content["cost_setup"]
    teacher, student = setup["pair"]
    lines = [INTRODUCTION.format(teacher=teacher, student=student, seeds=len(content["seeds"]), **setup)]
    for name in METHODS:
        transfers, needs = facts(name)
        cost, runs = content["cost"][name], content["accuracy"][name]
        initial = f" ({cost['initial']:.2f})" if "initial" in cost else ""
        extra = f"{cost['extra_parameters']:,.0f}" if cost["extra_parameters"] > 0 else "-"
        values = [100 * value for value in runs["student"]]
        accuracy = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
        lines.append(
            f"| `{name}` | {title(name)} | {transfers} | {needs} | {cost['main']:.2f}{initial} | {extra} | {accuracy} |"
        )
    lines += ["", footer(content["accuracy"]), ""]
    return "\n".join(lines)


def title(name: str) -> str:
    """The first words of a YAML's description: authors and year, or what it is."""
    first = (conf_dir() / "method" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip().partition(":")[0].replace("|", "\\|")


def footer(accuracy: dict[str, dict[str, list[float]]]) -> str:
    """The arms that all methods share."""
    parts = []
    for arm in ("teacher", "baseline"):
        values = [100 * value for value in accuracy["kd"][arm]]
        spread = f" ± {statistics.stdev(values):.1f}" if len(set(values)) > 1 else ""
        parts.append(f"{arm} {statistics.mean(values):.1f}{spread}%")
    return f"Beside them: {', '.join(parts)}, on 2,000 test images (one point is 20 images)."


def main() -> None:
    if sys.argv[1:] in (["cost"], ["accuracy"]):
        measure(sys.argv[1])
    elif sys.argv[1:]:
        raise SystemExit(__doc__)
    content = json.loads(DATA.read_text(encoding="utf-8"))
    if missing := {"cost", "accuracy"} - set(content):
        raise SystemExit(f"{DATA} lacks {missing.pop()}: measure it too.")
    PAGE.write_text(render(content), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
