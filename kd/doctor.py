"""Look at everything that a run needs, in a second or two: one line for each check, ok, warn or bad, with what to do.

Nothing is trained, downloaded or changed. --fix removes what runs that were killed have left half written, and says
what; networks, results and checkpoints are never removed. Exit status: 0, or 1 if a line is bad.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import kd
from kd import checksums, leftovers, sync
from kd.entry_files import check_weights, read_meta
from kd.errors import DataError, StoreError
from kd.files import CACHE, CONFIG, ENTRIES, ENTRY_BYTES, LOGITS, META, RESULT, WEIGHTS, link_in
from kd.tracking import server

NEEDED = ("torch", "torchvision", "lightning", "hydra-core", "omegaconf", "safetensors", "scikit-learn", "filelock")
LEAST = {
    "torch": (2, 11),
    "torchvision": (0, 26),
    "lightning": (2, 6, 6),
    "safetensors": (0, 5),
}  # as in pyproject.toml
DATASETS = {
    "mnist": checksums.MNIST,
    "fashion_mnist": checksums.FASHION_MNIST,
    "cifar10": checksums.CIFAR10,
    "cifar100": checksums.CIFAR100,
}
LITTLE_BYTES, ENOUGH_BYTES = 10**9, 5 * 10**9  # free: below the first a run may end in the middle
NETWORK_S = 1.0
SHOWN = 5


class Line(NamedTuple):
    level: str  # ok, warn or bad
    what: str
    text: str


def main(arguments: list[str] | None = None) -> int:
    """Print the lines; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kd.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="store.root; default: store in the outputs")
    data = Path(os.environ.get("KD_DATA_DIR") or "data")
    parser.add_argument("--data", type=Path, default=data, metavar="FOLDER", help="data.root; default: %(default)s")
    parser.add_argument("--fix", action="store_true", help="remove what runs that were killed have left half written")
    given = parser.parse_args(arguments)
    store = given.store or given.outputs / "store"
    checks: list[Callable[[], Iterator[Line]]] = [
        versions,
        devices,
        lambda: datasets(given.data),
        lambda: disk([given.outputs, store]),
        lambda: dashboards(given.outputs),
        lambda: entries(store),
        lambda: caches(store),
        lambda: runs(given.outputs),
        lambda: left_over(given.outputs, store, fix=given.fix),
    ]
    levels = []
    for check in checks:
        for line in check():
            levels.append(line.level)
            print(f"{line.level:<5} {line.what:<9} {line.text}", flush=True)
    return 1 if "bad" in levels else 0


def versions() -> Iterator[Line]:
    """The packages that a run needs."""
    found, absent, old = [], [], []
    for name in NEEDED:
        try:
            known = version(name)
        except PackageNotFoundError:
            absent.append(name)
            continue
        found.append(f"{name} {known}")
        if _numbers(known) < LEAST.get(name, ()):
            old.append(f"{name} {known} (at least {'.'.join(map(str, LEAST[name]))})")
    yield Line("ok", "versions", f"kd {kd.__version__}, python {platform.python_version()}, {', '.join(found)}")
    if absent:
        yield Line("bad", "versions", f"not installed: {', '.join(absent)}. Run `make setup`.")
    if old:
        yield Line("bad", "versions", f"too old: {', '.join(old)}. Run `make setup`.")
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        yield Line("bad", "versions", f"python {platform.python_version()}: 3.11 to 3.13 is needed.")


def devices() -> Iterator[Line]:
    """What there is to train on, as the driver says; torch itself would take seconds to ask."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = _gpus()
    yield Line("ok", "devices", ", ".join([*gpus, f"{cores} processor cores"]))
    if gpus and not torch_uses_gpus():
        yield Line("warn", "devices", f"torch {_version('torch')} cannot use them: install a build for GPUs.")


def torch_uses_gpus() -> bool:
    """Whether torch was built with CUDA or ROCm, by its file of versions, which is read and not imported."""
    spec = find_spec("torch")
    for place in (spec.submodule_search_locations or []) if spec else []:
        with suppress(OSError):
            text = (Path(place) / "version.py").read_text(encoding="utf-8")
            return bool(re.search(r"^(cuda|hip)\b[^=]*= *['\"]", text, re.MULTILINE))
    return False


def datasets(root: Path) -> Iterator[Line]:
    """The published datasets that are there, by their checksums; the others are downloaded when they are needed."""
    whole, absent = ["digits (built in)"], []
    for name, files in DATASETS.items():
        missing = checksums.missing(root, files)
        if len(missing) == len(files):
            absent.append(name)
            continue
        if missing:
            yield Line(
                "bad", "data", f"{name} in {root} lacks {_some(missing)}. Put the files there, or delete the rest."
            )
            continue
        try:
            checksums.verify(root, files)
            whole.append(name)
        except (DataError, OSError) as error:
            yield Line("bad", "data", str(error))
    yield Line("ok", "data", f"{', '.join(whole)}{f'; not in {root}: ' + ', '.join(absent) if absent else ''}")


def disk(folders: list[Path]) -> Iterator[Line]:
    """The room where runs write, and whether they may."""
    seen, told = set(), set()
    for folder in folders:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        if not os.access(there, os.W_OK) and there not in told:
            told.add(there)
            yield Line("bad", "disk", f"{there} cannot be written. Choose other folders (hydra.run.dir, store.root).")
        device = there.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(there).free
        level = "bad" if free < LITTLE_BYTES else "warn" if free < ENOUGH_BYTES else "ok"
        advice = "" if level == "ok" else ". Free some, or choose other folders (hydra.run.dir, store.root)."
        yield Line(level, "disk", f"{free / 1e9:,.1f} GB free at {folder}{advice}")


def dashboards(outputs: Path) -> Iterator[Line]:
    """The W&B login, without waiting for its server for more than a second, and what was not uploaded."""
    if not _version("wandb"):
        yield Line("ok", "W&B", "not installed; metrics.csv has everything")
    elif not server.has_key():
        yield Line("ok", "W&B", "no login (`wandb login`); logger=wandb logs offline")
    elif not server.reachable(NETWORK_S):
        yield Line("warn", "W&B", f"{server.host()} does not answer; runs log offline, python -m kd.sync uploads later")
    else:
        yield Line("ok", "W&B", f"login for {server.host()}, which answers")
    waiting = [run for run in sync.find([outputs]) if run.state == "upload"] if outputs.is_dir() else []
    if waiting:
        yield Line("warn", "W&B", f"{len(waiting)} runs are not uploaded: python -m kd.sync {outputs}")


def entries(root: Path) -> Iterator[Line]:
    """Every network in the store: its description, its curves, its weights, each against its SHA-256."""
    if not root.is_dir():
        yield Line("ok", "store", f"{root}: nothing trained yet")
        return
    count, size = 0, 0
    for folder in (folder for folder in _folders(root) if folder.name != CACHE):
        try:
            check_weights(folder, read_meta(folder))
        except (StoreError, OSError) as error:
            yield Line("bad", "store", str(error))
        else:
            count, size = count + 1, size + (folder / WEIGHTS).stat().st_size
    yield Line("ok", "store", f"{count} networks in {root}, {size / 1e6:,.1f} MB, each as it was stored")


def caches(root: Path) -> Iterator[Line]:
    """Every teacher cache: whether its files hold what they say. Each entry's hash is compared when it is read."""
    count, size = 0, 0
    for folder in _folders(root / CACHE) if (root / CACHE).is_dir() else ():
        try:
            if link := link_in(folder, META, LOGITS, ENTRIES):
                raise ValueError(link)
            meta = json.loads((folder / META).read_text(encoding="utf-8"))
            row, entries = meta["itemsize"] * meta["classes"], (folder / ENTRIES).stat().st_size // ENTRY_BYTES
            if (found := (folder / LOGITS).stat().st_size) < entries * row:
                raise ValueError(f"{LOGITS} has {found:,} bytes, {entries:,} entries need {entries * row:,}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield Line("bad", "cache", f"{folder} is damaged ({error}). Delete the folder; it is then filled again.")
        else:
            count, size = count + 1, size + found
    if count:
        yield Line("ok", "cache", f"{count} teacher caches in {root / CACHE}, {size / 1e6:,.1f} MB")


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def runs(outputs: Path) -> Iterator[Line]:
    """How many runs are finished, and which can be continued."""
    if not outputs.is_dir():
        return
    begun = [path.parent for path in leftovers.below(outputs, CONFIG)]
    open_ended = [folder for folder in begun if not (folder / RESULT).is_file()]
    yield Line("ok", "runs", f"{len(begun) - len(open_ended)} finished")
    if open_ended:
        yield Line("ok", "runs", f"{len(open_ended)} begun; the same command continues them: {_some(open_ended)}")


def left_over(outputs: Path, store: Path, *, fix: bool) -> Iterator[Line]:
    """What runs that are dead have left half written."""
    found = list(leftovers.find(outputs, store))
    if not found:
        yield Line("ok", "leftovers", "none")
    elif not fix:
        yield Line("warn", "leftovers", f"{len(found)} of dead runs, --fix removes them: {_some(found)}")
    for path in found if fix else ():
        try:
            leftovers.remove(path)
        except OSError as error:
            yield Line("bad", "leftovers", f"{path} cannot be removed: {error.strerror}.")
        else:
            yield Line("ok", "leftovers", f"removed {path}")


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        command = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return []
    return [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.partition("+")[0].split(".") if part.isdigit())


def _some(things: list[Path] | list[str]) -> str:
    return ", ".join(map(str, things[:SHOWN])) + (f" and {len(things) - SHOWN} more" if len(things) > SHOWN else "")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
