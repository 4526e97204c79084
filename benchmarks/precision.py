"""`python -m benchmarks.precision`: what bfloat16 does to test accuracies, seed by seed.

The same runs in 32-true and in bf16-mixed (weights and optimiser stay float32 in both), with a teacher of its own for
every seed and precision: MNIST's pair on 20,000 images for 5 epochs, and ResNet-8 from ResNet-8 on 2,000 images of
CIFAR-10 for 4. What is not finished below `outputs/` is trained, by the commands that are printed. Shown: the paired
differences bf16-mixed minus 32-true in points, their mean and its 95% interval (BCa).
"""

import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from kd.statistics import summary

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "precision.json"
PRECISIONS = ("32-true", "bf16-mixed")
SEEDS = (0, 1, 2, 3, 4, 5)
RUNS = {
    "mnist_kd": "data.train_limit=20000 trainer.max_epochs=5 trainer.threads=1",
    "cifar_small": "model@teacher.model=resnet8 data.train_limit=2000 trainer.max_epochs=4 teacher.allow_weak=true",
}


def command(experiment: str) -> list[str]:
    seeds, kinds = ",".join(map(str, SEEDS)), ",".join(PRECISIONS)
    own = f"experiment={experiment} {RUNS[experiment]} trainer.precision={kinds} seed={seeds} 'teacher.seed=${{seed}}'"
    folder = f"hydra.sweep.dir=outputs/precision/{experiment}"
    return ["-m", "kd.run", "-m", *shlex.split(own), "logger=csv", "latency=false", folder]


def accuracies(experiment: str) -> dict[str, dict[str, dict[int, float]]]:
    """Test accuracies by arm, precision and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for path in sorted((ROOT / "outputs" / "precision" / experiment).glob("*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        kind = next(kind for kind in PRECISIONS if f"precision-{kind}" in path.parent.name)
        for arm in ("baseline", "student"):
            accuracy = result["arms"][arm]["test"]["accuracy"]
            found.setdefault(arm, {}).setdefault(kind, {})[result["seed"]] = accuracy
    return found


def main() -> None:
    print("bf16-mixed minus 32-true, test accuracy in points, paired by seed")
    found: dict[str, Any] = {}
    for experiment in RUNS:
        line = command(experiment)
        print(f"\npython {shlex.join(line)}", flush=True)
        subprocess.run([sys.executable, *line], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        arms = {arm: compared(kinds) for arm, kinds in accuracies(experiment).items()}
        for arm, row in arms.items():
            print(
                f"  {arm:<9} 32-true {row['full']:6.2f}%   bf16-mixed {row['half']:6.2f}%   difference "
                f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}], n = {len(SEEDS)}",
                flush=True,
            )
        found[experiment] = {"command": f"python {shlex.join(line)}", "seeds": list(SEEDS), "arms": arms}
    DATA.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{DATA}; write the page with: python -m benchmarks.performance page")


def compared(kinds: dict[str, dict[int, float]]) -> dict[str, float]:
    """Mean accuracies in percent, and the paired difference in points with its interval."""
    full, half = (kinds[kind] for kind in PRECISIONS)
    difference = summary([100 * (half[seed] - full[seed]) for seed in SEEDS])
    assert difference.mean is not None and difference.low is not None and difference.high is not None
    means = {name: 100 * statistics.mean(values.values()) for name, values in (("full", full), ("half", half))}
    return {**means, "difference": difference.mean, "low": difference.low, "high": difference.high}


if __name__ == "__main__":
    main()
