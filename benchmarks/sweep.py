"""`python -m benchmarks.sweep [--runs N] [--network NAME] [--steps-per-call K]`: students together, or one by one.

kd trains N students of different temperatures and weights on the same batches (`sweep=together`), with a live teacher
and with one that is cached. The field's way is a run for each: N times a step of the peer-style loop, of which one is
measured. The control is N times a step of a competent script. The teachers are 784-1200-1200-10 and ResNet-34, the
batch has 64 images.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.pairs import PAIRS, Training, configured
from benchmarks.peers import control, peer
from benchmarks.rounds import Rounds, Table, setting, show
from benchmarks.step import described, per_call
from kd.lockstep.train import Trained, train_together
from kd.recipe import Recipe, plan

BATCH, ROUNDS = 64, 7
#: the pair, what is changed of its student, and the steps of a round
NETWORKS = {
    "mlp_100": ("mnist", "student.hidden=[100,100]", 32),
    "mlp_800": ("mnist", "student.hidden=[800,800]", 16),
    "cnn": ("rn34_cnn", "model@student=cnn3", 2),
}
TEMPERATURES, WEIGHTS = (1, 2, 4, 8, 12, 16, 20, 40), (0.5, 0.9)


def measure(name: str, runs: int, *, cached: bool, calls: int = 1) -> Table:
    """Print the table of a network, kd doing so many steps a call; return it."""
    pair_name, student, steps = NETWORKS[name]
    pair = PAIRS[pair_name]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) if cached else None
        training = Training(pair, BATCH, steps * (ROUNDS + 1), student, per_call(calls), cached_in=store)
        networks = [training.network(side) for side in ("teacher", "student", "teacher", "student")]
        others = {
            f"{runs} peer-style runs": peer(pair, *networks[:2], BATCH),
            f"{runs} competent runs": control(
                pair, None if cached else networks[2], networks[3], BATCH, training.precision
            ),
        }
        if cached:
            training.run()  # fills the cache
        rounds = Rounds(others, steps=steps, rounds=ROUNDS, per_call=calls)
        done = together(training, recipes(training, pair_name, student, runs), rounds)
    for side in others:  # one run was measured, and there are so many
        for times in (rounds.clock.cpu, rounds.clock.wall):
            times[side] = [runs * one for one in times[side]]
    assert done.choice is not None
    kind = "cached" if cached else "live"
    found = show(f"{name}: {runs} students, batch {BATCH}, {kind} teacher, {described(training)}", rounds.clock, steps)
    print(f"  {done.choice.describe()}\n  {setting(ROUNDS, steps)}")
    return found


def recipes(training: Training, pair: str, student: str, runs: int) -> list[Recipe]:
    """So many students of the grid of temperatures and weights."""
    grid = [(temperature, weight) for weight in WEIGHTS for temperature in TEMPERATURES]
    made = []
    for temperature, weight in grid[:runs]:
        own = (f"method.temperature={temperature}", f"method.alpha={weight}")
        made.append(plan(configured(PAIRS[pair], BATCH, student, *own), training.data).student)
    return made


def together(training: Training, students: Sequence[Recipe], watcher: Rounds) -> Trained:
    with training.trainings([watcher]) as trainings:
        for member in students[0].teacher.members:
            assert isinstance(member, Recipe)
            trainings.obtain(member)
        return train_together(trainings, students)


def main() -> None:
    asked = argparse.ArgumentParser(prog="benchmarks.sweep", description=__doc__.splitlines()[0])
    asked.add_argument("--runs", type=int, default=8)
    asked.add_argument("--network", choices=NETWORKS, action="append")
    asked.add_argument("--steps-per-call", type=int, default=1)
    arguments = asked.parse_args()
    if not 2 <= arguments.runs <= len(TEMPERATURES) * len(WEIGHTS):
        asked.error(f"--runs must be from 2 to {len(TEMPERATURES) * len(WEIGHTS)}, but is {arguments.runs}.")
    torch.set_num_threads(1)
    for name in arguments.network or NETWORKS:
        for cached in (False, True):
            measure(name, arguments.runs, cached=cached, calls=arguments.steps_per_call)


if __name__ == "__main__":
    main()
