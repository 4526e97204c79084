"""docs/performance.md and other machines' pages, from what `benchmarks.performance` has measured."""

from typing import Any

from benchmarks.pairs import PAIRS

PEER, SCRIPT = "peer-style loop", "competent script"
#: the least ratio of processor time over the peer-style loop that was asked of each, before it was built
STEP_TARGETS = {"mnist": 3.2, "rn34_cnn": 2.2, "r110_r20": 2.0}
CACHE_TARGETS = {"mnist": 4.5, "rn34_cnn": 5.5, "r110_r20": 5.0}
SWEEP_TARGETS = {"mlp_100": (10.0, 25.0), "mlp_800": (4.5, None), "cnn": (4.5, None)}
PIL_TARGET, BARE_TARGET, SHARE_TARGET, CALLS_TARGET, FEW_CALLS_TARGET = 15.0, 1.05, 0.40, 1500, 600

PAGE = """# How fast, in {precision}

Written by `{command}` from `docs/{name}.json`;
each table names the command that measures it alone.{others}
What the figures are:

- **x**: how many times as long the other side takes as kd, in processor time of the process: the median over rounds,
  and the smallest and the largest. All sides do the same number of steps in turn, in one process, on one thread
  ({machine}).
- **peer-style loop**: what the field's scripts do, written here from its description: PIL transforms on every image, a
  DataLoader, an eager float32 teacher, an unfused optimiser, `loss.item()` and top-1 and top-5 accuracy at every step.
- **competent script**: a plain PyTorch loop that does it well: images resident as uint8, whole batches augmented on the
  device, kd's precision, channels last, a fused optimiser, no waiting; with a cached teacher it looks its logits up in
  a table. Near 1 means: kd costs nothing over that, and gives no miracle either.
- kd's side is its own training, with callbacks, bar and curves, in the precision that `trainer.precision=auto` chooses
  (here {precision}); both sides have the same batch size, 64 being such scripts' default and 128 kd's.
- **asked**: what was asked of it before it was built.

## A step

`python -m benchmarks.step` (live teacher), `python -m benchmarks.cache` (the teacher's logits out of the cache, filled
by a run before; see [teacher-cache.md](teacher-cache.md)). The two are never mixed. What a cached teacher does once
before each epoch, reading its logits and computing 64 anew, is no part of a step; the command prints its seconds.

{steps}

## The data

`python -m benchmarks.data`: crop 4, flip and normalise, batches of 128.

{data}

## What Lightning costs

`python -m benchmarks.overhead`: MNIST's pair, batch 64, in float32, against a loop that calls the same loss and
optimiser and does nothing else. Calls are of Python and built-in functions, and but for one or two the same on every
machine.

{overhead}

## A sweep in one process

`python -m benchmarks.sweep --runs 8` (`sweep=together`): 8 students of different temperatures and weights on shared
batches of 64 with one teacher, against 8 runs of the peer-style loop and of the competent script, of which one is
measured and counted 8 times.

{sweep}

## Share of the peak

`python -m benchmarks.roof`: operations per second of a step at batch 512 over those of the fastest large matrix
product or 3x3 convolution of the same precision, measured in turn. Batch norm, activations and the
optimiser count as time but not as work.

{roof}
{halves}
## Where less was reached than asked

{misses}
"""

HALVES = """
## What bfloat16 does to accuracy

`python -m benchmarks.precision`: test accuracies in percent, bf16-mixed minus 32-true in points, paired by seed, each
with a teacher of its own; 95% interval (BCa). An interval with 0 in it shows no difference; with so few seeds it may
miss one that is smaller than its width. `trainer.precision` stays 32-true unless you ask for another.

{precisions}
"""


def render(name: str, content: dict[str, Any], precisions: dict[str, Any], others: list[str]) -> str:
    """Return the page of a record.

    `precisions` is what `benchmarks.precision` has found, shown where kd's side computes in bfloat16; `others` are the
    names of other machines' records.
    """
    found = {name: part["found"] for name, part in content.items() if name != "precision"}
    parts = {
        "steps": _table(
            ["pair", "teacher", "batch", "steps a call", f"x {PEER}", "asked", f"x {SCRIPT}", "kd, ms a step"],
            _steps(found),
        ),
        "data": _table(["side", "x", "asked", "us an image"], _data(found["data"])),
        "overhead": _table(
            ["", "calls a step", "asked", "time over the bare loop", "asked"], _overhead(found["overhead"])
        ),
        "sweep": _table(
            [
                "student",
                "teacher",
                "steps a call",
                "x 8 peer-style runs",
                "asked",
                "x 8 competent runs",
                "kd, ms a step",
            ],
            _sweep(found),
        ),
        "roof": _table(["pair", "step, Gop/s", "peak, Gop/s", "share", "asked"], _roof(found["roof"])),
    }
    compared = _table(["experiment", "arm", "seeds", "32-true", "bf16-mixed", "difference"], _precisions(precisions))
    links = ", ".join(f"[{other}.md]({other}.md)" for other in others)
    return PAGE.format(
        name=name,
        command="make bench" if name == "performance" else f"python -m benchmarks.performance --name {name}",
        others=f" On other machines: {links}." if others else "",
        machine=content["step"]["machine"],
        precision=content["precision"],
        halves=HALVES.format(precisions=compared) if content["precision"] == "bf16-mixed" else "",
        misses=_misses(found),
        **parts,
    )


def _ratio(row: dict[str, float]) -> str:
    return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _steps(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for kind, targets in (("step", STEP_TARGETS), ("cache", CACHE_TARGETS)):
        for name, batches in found[kind].items():
            for batch, calls in batches.items():
                rows += [
                    [PAIRS[name].title, "live" if kind == "step" else "cached", batch, count, _ratio(table[PEER]),
                     f"{targets[name]}", _ratio(table[SCRIPT]), f"{table['kd']['processor_ms']:.2f}"]
                    for count, table in calls.items()
                ]  # fmt: skip
    return rows


def _data(table: dict[str, Any]) -> list[list[str]]:
    rows = [["kd", "", "", f"{1e3 * table['kd']['processor_ms'] / 128:.1f}"]]
    for side, asked in (("per image, PIL", f"{PIL_TARGET:.0f}"), (SCRIPT, "")):
        rows.append([side, _ratio(table[side]), asked, f"{1e3 * table[side]['processor_ms'] / 128:.1f}"])
    return rows


def _overhead(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, count in found["calls"].items():
        timed = found.get(name, {}).get("kd")
        asked = {"steps_per_call=1": f"{CALLS_TARGET:,}", "steps_per_call=32": f"{FEW_CALLS_TARGET}"}.get(name, "")
        rows.append([f"`{name}`" if "=" in name else name, f"{count['calls']:,.0f}", asked,
                     _ratio(timed) if timed else "", f"{BARE_TARGET}" if timed else ""])  # fmt: skip
    return rows


def _sweep(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, kinds in found["sweep"].items():
        for asked, (kind, calls) in zip(SWEEP_TARGETS[name], kinds.items(), strict=True):
            rows += [
                [name, kind, count, _ratio(table["8 peer-style runs"]), f"{asked}" if asked else "",
                 _ratio(table["8 competent runs"]), f"{table['kd']['processor_ms']:.2f}"]
                for count, table in calls.items()
            ]  # fmt: skip
    return rows


def _roof(found: dict[str, Any]) -> list[list[str]]:
    return [
        [
            PAIRS[name].title,
            f"{row['step'] / 1e9:.0f}",
            f"{row['peak'] / 1e9:.0f}",
            f"{row['share']:.0%}",
            f"{SHARE_TARGET:.0%}",
        ]
        for name, row in found.items()
    ]


def _precisions(found: dict[str, Any]) -> list[list[str]]:
    return [
        [name, arm, f"{len(runs['seeds'])}", f"{row['full']:.2f}", f"{row['half']:.2f}",
         f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"]
        for name, runs in found.items()
        for arm, row in runs["arms"].items()
    ]  # fmt: skip


def _misses(found: dict[str, Any]) -> str:
    """Each figure below what was asked of it, with what explains it."""
    missed = []
    for kind, targets in (("step", STEP_TARGETS), ("cache", CACHE_TARGETS)):
        for name, target in targets.items():
            calls = found[kind][name]["64"]
            row = calls["1"]
            if row[PEER]["ratio"] < target:
                roof = found["roof"][name]
                macs = roof["student_macs"] + (roof["teacher_macs"] if kind == "step" else 0.0)
                at_peak_ms = 1e3 * 2 * 64 * macs / roof["peak"]
                allowed_ms = row[PEER]["processor_ms"] / target
                missed.append(
                    f"- {PAIRS[name].title} with a {'live' if kind == 'step' else 'cached'} teacher at batch 64: "
                    f"{_reached(calls, PEER)} instead of {target}. That would be {allowed_ms:.2f} ms a step, in which "
                    f"the products and convolutions alone take {at_peak_ms:.2f} ms at the measured peak; batch norm, "
                    "activations, the optimiser's memory traffic and Python come on top. The competent script takes "
                    f"{row[SCRIPT]['ratio']:.2f} times kd's time."
                )
    for name, kinds in found["sweep"].items():
        for target, (kind, calls) in zip(SWEEP_TARGETS[name], kinds.items(), strict=True):
            if target and calls["1"]["8 peer-style runs"]["ratio"] < target:
                missed.append(
                    f"- 8 students of {name} with a {kind} teacher: {_reached(calls, '8 peer-style runs')} instead of "
                    f"{target}. Against 8 competent runs it is {_reached(calls, '8 competent runs')}: the rest is the "
                    "students' own arithmetic, which nothing can share."
                )
    if found["data"]["per image, PIL"]["ratio"] < PIL_TARGET:
        pil = found["data"]["per image, PIL"]
        missed.append(
            f"- Augmentation: {pil['ratio']:.1f} instead of {PIL_TARGET:.0f}. PIL takes "
            f"{1e3 * pil['processor_ms'] / 128:.0f} us an image on this machine; the ratio goes with that."
        )
    if (slow := found["overhead"]["steps_per_call=1"]["kd"]["ratio"]) > BARE_TARGET:
        many = found["overhead"]["steps_per_call=16"]["kd"]["ratio"]
        missed.append(
            f"- Lightning over the bare loop: {slow:.2f} instead of {BARE_TARGET}, one step a call; {many:.2f} with "
            "`trainer.steps_per_call=16`."
        )
    for name, row in found["roof"].items():
        if row["share"] < SHARE_TARGET:
            missed.append(f"- {PAIRS[name].title}: {row['share']:.0%} of the peak instead of {SHARE_TARGET:.0%}.")
    return "\n".join(missed) or "Nowhere."


def _reached(calls: dict[str, Any], side: str) -> str:
    """The ratio over a side, one step a call and several."""
    one, *several = (f"{table[side]['ratio']:.2f}" for table in calls.values())
    return one + "".join(f" ({ratio} with `trainer.steps_per_call=16`)" for ratio in several)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
