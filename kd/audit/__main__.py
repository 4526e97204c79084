"""Run an experiment under several seeds and judge its claim.

The first form runs what is missing, one run after another, and never repeats a finished run: the same command after an
interruption continues. The second judges finished runs (run folders, sweeps) and trains nothing; runs that differ in
more than their seed are never pooled, each configuration is an audit of its own.

Arms are paired by seed. Each comparison of the claim (config: claim.comparisons; without one, that the student's test
accuracy is above the baseline's) gets mean, standard deviation, BCa 95% interval, exact sign-flip p and a verdict:
"supported" (interval above 0 and p < 0.05), "refuted" (interval below 0) or "inconclusive". Fewer than 6 seeds have no
verdict; 10 make a headline. The configurations of a sweep are judged together: their p values are adjusted (Holm).
"""

if __name__ == "__main__":  # first of all: to import what follows takes a while
    from kd.leaving import at_once

    at_once()

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from kd.audit.found import collect
from kd.audit.judge import audits, default_path
from kd.audit.request import PREFIX, of_runs, parse
from kd.audit.runs import gather, plan
from kd.audit.show import show
from kd.cli import messages
from kd.errors import ConfigError
from kd.files import write_json

FAILED = 6
USAGE = f"""{PREFIX} experiment=NAME [seeds=6] [controls=true] [KEY=VALUE...] [out=FILE.json]
       {PREFIX} FOLDER... [out=FILE.json]"""
ARGUMENTS = """what to audit:
  experiment=NAME   the experiment (python -m kd.list)
  seeds=6           how many seeds (0 to 5), or which: seeds=[3,4,5]
  controls=true     also run three controls, each against the baseline and against the student: the baseline with label
                    smoothing 0.1, a student of an untrained teacher, a student of its own kind (self-KD)
  KEY=VALUE         an override for every run: trainer.precision=bf16-mixed, method.temperature=8, ...
                    fewer epochs or images make a shortened audit, which is marked so wherever it is shown
  out=FILE.json     where the audit goes; default: outputs/<experiment>/audit-<hash>/audit.json
  FOLDER            finished runs, instead of an experiment

exit status:
  0 done, 2 bad input (nothing was trained), 3 data, 4 damaged files, 6 a run failed (the audit judges the others),
  130 interrupted, 143 terminated
"""


def main(given: list[str]) -> int:
    """Do an audit and print it; return the exit status. Raises `UserError` for bad input."""
    request, console = parse(given), Console()
    if request.folders:
        found = collect(request)
        if request.out and len(found) > 1:
            raise ConfigError(
                f"These folders hold {len(found)} configurations, each an audit of its own, and out={request.out} has "
                "room for one. Leave out= away, or give the folders of one configuration."
            )
    else:
        planned = plan(request)
        if request.out:
            _try_out(request.out)
        found = [gather(request, planned, lambda line: _say(console, line))]
    for evidence, content in zip(found, audits(found), strict=True):
        path = request.out or default_path(evidence, found)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        show(content, console)
        _say(console, f"audit: {path}")
    return FAILED if any(evidence.failed for evidence in found) else 0


def _try_out(path: Path) -> None:
    """Find out before anything trains whether the audit can be written there at the end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"Cannot write out={path}: {error.strerror or error}. Name a file elsewhere.") from error


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.file.flush()  # before what a run in a process of its own prints


def _help() -> argparse.ArgumentParser:
    """Only for --help: settings are written as for `python -m kd.run`, which argparse does not read."""
    parser = argparse.ArgumentParser(
        prog=PREFIX,
        usage=USAGE,
        description=__doc__,
        epilog=ARGUMENTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    given = sys.argv[1:]
    if {"-h", "--help"} & set(given):
        _help().parse_args(["--help"])
    with messages(of_runs(given)):
        sys.exit(main(given))
