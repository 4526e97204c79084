"""`python -m benchmarks.roof`: the share of the device's measured peak that a distillation step achieves at batch 512.

Peak: the fastest of a few large matrix products, or of 3x3 convolutions, in the precision of the training. Work: the
multiply-accumulates of a teacher's forward and a student's forward and backward pass (three times its forward), two
operations each; the optimiser, batch norm and everything elementwise count as time but not as work. Peak and step are
measured in turn.
"""

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.pairs import PAIRS, Pair, Training
from benchmarks.peers import device
from benchmarks.rounds import Rounds, setting
from kd.nets.cost import macs

BATCH, ROUNDS = 512, 5
STEPS = {"mnist": 4, "rn34_cnn": 2, "r110_r20": 1}


def products(dtype: torch.dtype) -> list[tuple[Callable[[], object], float]]:
    """Matrix products of the sizes that fill a core or a GPU, with their operations."""
    sizes = (1024, 2048) if device().type == "cpu" else (4096, 8192)
    made = []
    for size in sizes:
        a, b = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
        made.append((lambda a=a, b=b: a @ b, 2.0 * size**3))
    return made  # type: ignore[return-value]


def convolutions(dtype: torch.dtype) -> list[tuple[Callable[[], object], float]]:
    """Padded 3x3 convolutions, channels last, with their operations."""
    made = []
    for channels, side, count in ((64, 32, 32), (128, 16, 64), (256, 16, 32)):
        image = torch.randn(count, channels, side, side, device=device()).to(dtype, memory_format=torch.channels_last)
        kernel = torch.randn(channels, channels, 3, 3, device=device()).to(dtype, memory_format=torch.channels_last)
        operations = 2.0 * count * side**2 * channels**2 * 9
        made.append((lambda i=image, k=kernel: torch.conv2d(i, k, padding=1), operations))
    return made  # type: ignore[return-value]


def rate(kernel: tuple[Callable[[], object], float]) -> float:
    """Operations per second of the processor, the best of three."""
    run, operations = kernel
    with torch.no_grad():
        return operations / min(seconds(run) for _ in range(3))


def seconds(run: Callable[[], object]) -> float:
    on_gpu = device().type == "cuda"
    started = time.perf_counter() if on_gpu else time.process_time()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() if on_gpu else time.process_time()) - started


def measure(name: str) -> dict[str, float]:
    """Print and return operations per second of the step and of the peak, medians of the rounds, and the share."""
    pair = PAIRS[name]
    steps = STEPS[name]
    training = Training(pair, BATCH, steps * (ROUNDS + 1))
    dtype = torch.bfloat16 if training.precision == "bf16-mixed" else torch.float32
    kernels = convolutions(dtype) if pair.image_shape[0] == 3 else products(dtype)
    peaks: list[float] = []
    rounds = Rounds({"peak": lambda _: peaks.append(max(map(rate, kernels)))}, steps=steps, rounds=ROUNDS)
    training.run(rounds)
    work = macs_per_image(training, pair)
    operations = 2.0 * BATCH * steps * (work["teacher_macs"] + work["student_macs"])
    spent = rounds.clock.wall["kd"] if device().type == "cuda" else rounds.clock.cpu["kd"]
    rates = [operations / one for one in spent]
    shares = [mine / peak for mine, peak in zip(rates, peaks[1:], strict=True)]  # the first round warms up
    found = {
        name: statistics.median(values) for name, values in (("step", rates), ("peak", peaks[1:]), ("share", shares))
    }
    kind = "convolutions" if pair.image_shape[0] == 3 else "matrix products"
    step, peak = found["step"] / 1e9, found["peak"] / 1e9
    print(f"  {pair.title:<24}{step:8.0f} of {peak:6.0f} Gop/s ({kind})   {found['share']:6.1%}", flush=True)
    return found | work


def macs_per_image(training: Training, pair: Pair) -> dict[str, float]:
    """What a step has to do for an image: the teacher's forward pass, and three times the student's."""
    teacher, student = (macs(training.network(side), pair.image_shape) for side in ("teacher", "student"))
    return {"teacher_macs": float(teacher), "student_macs": 3.0 * student}


def main() -> None:
    torch.set_num_threads(1)
    print(f"Share of the measured peak at batch {BATCH}")
    for name in PAIRS:
        measure(name)
    print(f"  {setting(ROUNDS, 1)}")


if __name__ == "__main__":
    main()
