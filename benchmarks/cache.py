"""`python -m benchmarks.cache [--pair NAME] [--batch N] [--steps-per-call K]`: a step with the teacher's logits cached.

The first training fills the cache, which is timed by itself; the second, of the same seed, is the one that is measured
and finds every logit: what a later run of any temperature, weight or student has. Its ratios are not those of a run
that fills (`python -m benchmarks.step` has the live teacher). The peer-style loop has no cache; the control looks its
logits up in a table.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.pairs import PAIRS, Training
from benchmarks.peers import control, peer
from benchmarks.rounds import Rounds, Table, setting, show
from benchmarks.step import described, main, per_call
from kd.cached_teacher import Cached

ROUNDS = 9
STEPS = {"mnist": 48, "rn34_cnn": 8, "r110_r20": 6}


def measure(name: str, batch: int, calls: int = 1) -> Table:
    """Print the table of a pair at a batch size, kd doing so many steps a call; return it."""
    pair, steps = PAIRS[name], STEPS[name]
    with tempfile.TemporaryDirectory() as folder:
        training = Training(pair, batch, steps * (ROUNDS + 1), per_call(calls), cached_in=Path(folder))
        started = time.perf_counter()
        training.run()
        filling_s = time.perf_counter() - started
        networks = [training.network(side) for side in ("teacher", "student", "student")]
        others = {
            "peer-style loop": peer(pair, *networks[:2], batch),
            "competent script": control(pair, None, networks[2], batch, training.precision),
        }
        rounds = Rounds(others, steps=steps, rounds=ROUNDS, per_call=calls)
        teacher = training.run(rounds).teacher
        assert isinstance(teacher, Cached)
    found = show(f"{pair.title}, batch {batch}, cached teacher, {described(training)}", rounds.clock, steps)
    images = batch * steps * (ROUNDS + 1)
    print(f"  the run before, which filled the cache with {images:,} logits, took {filling_s:.1f} s")
    print(f"  before the epoch, not in these times: {teacher.seconds:.1f} s to read the logits and compute 64 anew")
    print(f"  {setting(ROUNDS, steps)}")
    return found


if __name__ == "__main__":
    main(measure, __doc__)
