"""What SLURM says of its partitions and jobs. All jobs are asked for in one call; sacct is used where there is one."""

import os
import re
import subprocess
from dataclasses import dataclass

from kd.check import nearest
from kd.errors import ConfigError

TIMEOUT_S = 60.0  # a busy controller answers late
#: a job in one of these states does not come back by itself
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
#: reasons for which a job may wait for ever
STUCK = ("JobHeld", "JobHoldMaxRequeue", "launch failed", "Dependency", "Partition", "BadConstraints", "Association")


@dataclass(frozen=True)
class State:
    """Of one job: SLURM's word for its state, its reason for it, and the node."""

    word: str
    reason: str = ""
    node: str = ""

    @property
    def ended(self) -> bool:
        return self.word in ENDED

    @property
    def stuck(self) -> bool:
        """Whether somebody must do something before the job can start."""
        return self.word == "PENDING" and self.reason.startswith(STUCK)


def answer(*command: str) -> str | None:
    """What a command of SLURM prints; None if it fails or does not answer in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def states(name: str) -> dict[str, State] | None:
    """The user's jobs of this name that SLURM remembers, by their ids; None if it does not answer."""
    listing = answer(
        "squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--name={name}", "--states=all",
        "--format=%i|%T|%r|%N",
    )  # fmt: skip
    if listing is None:
        return None
    rows = (line.split("|") for line in listing.splitlines() if line)
    return {job: State(word, reason, node) for job, word, reason, node in rows}


def described(job: str) -> tuple[str, str]:
    """How a job ended, in SLURM's words, and on which node: from scontrol, or from sacct if that has forgotten it."""
    if shown := answer("scontrol", "--oneliner", "show", "job", job):
        found = dict(re.findall(r"(\w+)=(\S*)", shown))
        word, code, node = found.get("JobState", "?"), found.get("ExitCode", "0:0"), found.get("NodeList", "")
    elif kept := answer(
        "sacct", "--allocations", "--noheader", "--parsable2", "--jobs", job, "--format=State,ExitCode,NodeList"
    ):
        word, code, node = kept.splitlines()[0].split("|")
    else:
        return "no longer known to SLURM", ""
    return f"{word}{_exit(code)}", "" if node in ("(null)", "None assigned") else node


def _exit(code: str) -> str:
    """SLURM's `status:signal` in words; a shell says 128 + n of a process that signal n has ended."""
    status, signal = (int(part) for part in code.split(":"))
    if signal or status > 128:
        return f", killed by signal {signal or status - 128}"
    return f", exit status {status}" if status else ""


def check_partition(partition: str | None, gpus: bool) -> None:
    """Raise `ConfigError` if SLURM does not answer, or has no such partition, or no GPUs in it."""
    listing = answer("sinfo", "--noheader", "--format=%P|%G")
    if listing is None:
        raise ConfigError("SLURM does not answer (`sinfo` failed). Start the sweep where `sinfo` and `sbatch` work.")
    rows = [line.split("|") for line in listing.splitlines() if line]
    known = {name.rstrip("*") for name, _ in rows}
    default = {name.rstrip("*") for name, _ in rows if name.endswith("*")}
    chosen = set(partition.split(",")) if partition else default
    for name in sorted(chosen - known):
        raise ConfigError(
            f"hydra.launcher.partition={name} is unknown to SLURM.{nearest(name, known)} "
            f"Known: {', '.join(sorted(known))}."
        )
    if gpus and chosen and not any("gpu" in gres for name, gres in rows if name.rstrip("*") in chosen):
        raise ConfigError(
            f"The partition {', '.join(sorted(chosen))} has no GPUs, and each job asks for some. Choose another with "
            "hydra.launcher.partition, or set hydra.launcher.gpus_per_job=0 to train on CPUs."
        )
