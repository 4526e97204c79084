"""Upload to Weights & Biases what ran offline (logger=wandb without a login or a network), or was not taken whole.

Finds the offline runs below run folders, and those whose server went away before their end, and hands those that are
complete to W&B's own `wandb sync`, which marks what it has uploaded; the same command again uploads the rest. A run
that was cut off is complete once the same kd.run command has continued it; --unfinished uploads it as it is.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kd.errors import ConfigError, UserError
from kd.tracking import server

WANDB, COMPLETE, UNSENT, SYNCED = "wandb", "complete", "unsent", "*.wandb.synced"
BATCH = 20  # runs that one `wandb sync` uploads: it takes seconds to start
SAID_LINES = 12  # of what it said that are shown, the last ones
FAILED = 6


class Found(NamedTuple):
    """An offline run and what is to be done with it: "upload", "unfinished" (it is left) or "synced"."""

    folder: Path
    state: str


def find(folders: list[Path], unfinished: bool = False) -> list[Found]:
    """All offline runs below the folders, sorted. `unfinished`: those of cut-off runs are to be uploaded too.

    Raises `ConfigError` for a folder that is not there.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"There is no folder {folder}. Give run or sweep folders, as `python -m kd.run` names them."
            )
    found = {path for folder in folders for path in _offline_runs(folder.resolve())}
    return [Found(path, _state(path, unfinished)) for path in sorted(found)]


def upload(runs: list[Path], command: list[str], seconds_each: float) -> Iterator[tuple[list[Path], str]]:
    """Upload the runs, batch by batch; yield the runs that were tried, and what `wandb sync` said where one failed.

    `wandb sync` ends with status 0 whatever becomes of a run: its marker beside the run is what tells (`uploaded`). If
    it crashed, each run that it had not uploaded is tried again alone, so that one bad run stops no other.
    """
    for start in range(0, len(runs), BATCH):
        batch = runs[start : start + BATCH]
        crashed, said = _sync(command, batch, seconds_each * len(batch))
        left = [run for run in batch if not uploaded(run)]
        if crashed and len(batch) > 1:
            yield [run for run in batch if uploaded(run)], ""
            for run in left:
                _, said = _sync(command, [run], seconds_each)
                yield [run], "" if uploaded(run) else said
        else:
            yield batch, said if left else ""


def uploaded(run: Path) -> bool:
    """Whether W&B has marked an offline run as uploaded."""
    return any(run.glob(SYNCED))


def main(arguments: list[str] | None = None) -> int:
    """List or upload; return the exit status: 0 done, 2 no login or no folder, 6 a part could not be uploaded."""
    parser = argparse.ArgumentParser(
        prog="python -m kd.sync", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="run or sweep folders; default: outputs"
    )
    parser.add_argument("--list", action="store_true", help="only show what there is")
    parser.add_argument("--unfinished", action="store_true", help="also upload runs that were cut off")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS", help="for one run (default: %(default)g)"
    )
    given = parser.parse_args(arguments)
    try:
        runs = find(given.folders or [Path("outputs")], given.unfinished)
        if given.list:
            for run in runs:
                print(f"{run.state:<10}  {_short(run.folder)}")
        todo = [run.folder for run in runs if run.state == "upload"]
        failed = 0 if given.list or not todo else _upload_all(todo, given.timeout)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.status
    print(_summary(runs, len(todo) - failed, listed=given.list))
    return FAILED if failed else 0


def _upload_all(runs: list[Path], seconds_each: float) -> int:
    """Upload, say what became of each, and return how many failed. Raises `ConfigError` without a way to upload."""
    if seconds_each <= 0:
        raise ConfigError(f"Expected --timeout to be a number of seconds above 0, but got {seconds_each}.")
    if not server.has_key():
        raise ConfigError("There is no W&B login: run `wandb login`, or set WANDB_API_KEY.")
    if not server.reachable():
        print(f"{server.host()} cannot be reached. Nothing was uploaded.", file=sys.stderr)
        return len(runs)
    for tried, problem in upload(runs, _wandb(), seconds_each):
        for run in tried:
            print(f"{'uploaded' if uploaded(run) else 'failed':<10}  {_short(run)}", flush=True)
        if problem:
            print("\n".join(["wandb sync said:", *problem.splitlines()[-SAID_LINES:]]), file=sys.stderr)
    return sum(not uploaded(run) for run in runs)


def _summary(runs: list[Found], uploaded: int, *, listed: bool) -> str:
    states = [run.state for run in runs]
    parts = [f"{states.count('upload')} to upload" if listed else f"{uploaded} uploaded"]
    if not listed and (left := states.count("upload") - uploaded):
        parts.append(f"{left} failed (the same command tries them again)")
    parts.append(f"{states.count('synced')} uploaded before")
    if unfinished := states.count("unfinished"):
        parts.append(f"{unfinished} of unfinished runs left (--unfinished uploads them)")
    return f"{len(runs)} offline runs: {', '.join(parts)}."


def _offline_runs(folder: Path) -> Iterator[Path]:
    """The W&B folders of offline runs at or below a folder; nothing below a `wandb` folder but they is looked at."""
    for place, below, _ in os.walk(folder):
        if Path(place).name == WANDB:
            runs = [Path(place) / name for name in below]
            yield from (run for run in runs if run.name.startswith("offline-run-") or _is_unsent(run))
            below.clear()


def _is_unsent(run: Path) -> bool:
    return not run.is_symlink() and (run / UNSENT).exists()  # W&B has a link to its latest run


def _state(run: Path, unfinished: bool) -> str:
    if uploaded(run):
        return "synced"
    return "upload" if unfinished or (run.parent / COMPLETE).exists() else "unfinished"


def _wandb() -> list[str]:
    """The command line of W&B: the one on the PATH, else this interpreter's."""
    return [found] if (found := shutil.which("wandb")) else [sys.executable, "-m", "wandb"]


def _sync(command: list[str], runs: list[Path], seconds: float) -> tuple[bool, str]:
    """Run `wandb sync`; return whether it crashed, and its words. Its process group is ended when its time is over."""
    process = subprocess.Popen(
        [*command, "sync", "--include-online", *map(str, runs)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=seconds)[0].strip()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False, f"It did not end within {seconds:g} s and was stopped; --timeout gives it longer."
    except BaseException:  # Ctrl-C reaches only this process
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode != 0, said or f"Nothing, and ended with status {process.returncode}."


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Interrupted. The same command uploads the rest.", file=sys.stderr)
        sys.exit(130)
