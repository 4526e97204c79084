"""`python -m benchmarks.step [--pair NAME] [--batch N] [--steps-per-call K]`: a step against the field's and a control.

kd's side is its own training (`kd.train`): data, teacher, objective, optimiser, schedule, callbacks, bar and curves;
the teacher runs in every step (`python -m benchmarks.cache` for the one that does not). Without --batch at 64, the
default of such loops, and at 128, kd's. How: see `benchmarks.rounds`. Against what: `benchmarks.peers`.
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.pairs import PAIRS, Training
from benchmarks.peers import control, peer
from benchmarks.rounds import Rounds, Table, setting, show

ROUNDS = 9
STEPS = {"mnist": 32, "rn34_cnn": 8, "r110_r20": 4}  # about a second a side


def measure(name: str, batch: int, calls: int = 1) -> Table:
    """Print the table of a pair at a batch size, kd doing so many steps a call; return it."""
    pair, steps = PAIRS[name], STEPS[name]
    training = Training(pair, batch, steps * (ROUNDS + 1), per_call(calls))
    networks = [training.network(side) for side in ("teacher", "student", "teacher", "student")]
    others = {
        "peer-style loop": peer(pair, *networks[:2], batch),
        "competent script": control(pair, *networks[2:], batch, training.precision),
    }
    rounds = Rounds(others, steps=steps, rounds=ROUNDS, per_call=calls)
    training.run(rounds)
    found = show(f"{pair.title}, batch {batch}, live teacher, {described(training)}", rounds.clock, steps)
    print(f"  {setting(ROUNDS, steps)}")
    return found


def per_call(steps: int) -> str:
    return f"trainer.steps_per_call={steps}"


def described(training: Training) -> str:
    """How kd trains."""
    steps = training.config.trainer.steps_per_call
    return f"kd in {training.precision}" + (f", {steps} steps a call" if steps > 1 else "")


def main(measure: Callable[[str, int, int], Table] = measure, about: str = __doc__) -> None:
    asked = argparse.ArgumentParser(description=about.splitlines()[0])
    asked.add_argument("--pair", choices=PAIRS, action="append")
    asked.add_argument("--batch", type=int, action="append")
    asked.add_argument("--steps-per-call", type=int, default=1)
    arguments = asked.parse_args()
    torch.set_num_threads(1)
    for name in arguments.pair or PAIRS:
        for batch in arguments.batch or (64, 128):
            measure(name, batch, arguments.steps_per_call)


if __name__ == "__main__":
    main()
