"""A real SLURM of one node on this machine, with a folder and ports of its own and two GPUs that are not there."""

import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

COMMANDS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
GPUS = 2

# No munge: all is root on one machine. cred_expire is also how long a requeued job waits, two minutes if not set.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=6
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=3
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=10
"""


def missing() -> str | None:
    """Why no SLURM can be started here; None if one can."""
    if os.geteuid() != 0:
        return "only root can start a SLURM that needs no munge"
    absent = [command for command in COMMANDS if not shutil.which(command)]
    return f"SLURM is not installed: no {', '.join(absent)} (Debian: slurm-wlm)" if absent else None


def until(happened: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    started = time.monotonic()
    while not happened():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        time.sleep(0.1)


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@contextmanager
def started(folder: Path) -> Iterator[None]:
    """A SLURM whose files are in `folder`, and to which SLURM_CONF points; nothing of it is left afterwards."""
    ports = _free_ports(2)
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, ports=ports, folder=folder, gpus=GPUS))
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu{_devices(folder)}\n")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    daemons = []
    try:
        for daemon in ("slurmctld", "slurmd"):
            with (folder / f"{daemon}.out").open("w") as out:
                daemons.append(subprocess.Popen([daemon, "-D", "-c"], stdout=out, stderr=out))
        until(lambda: _idle() or any(daemon.poll() is not None for daemon in daemons))
        assert _idle(), "\n".join((folder / f"{name}.out").read_text() for name in ("slurmctld", "slurmd"))
        yield
    finally:
        with_jobs = subprocess.run(["scancel", "--signal=KILL", "--user=root"], capture_output=True).returncode == 0
        if with_jobs:
            until(lambda: not slurm("squeue", "--noheader", "--states=RUNNING,COMPLETING"), 20)
        for process in reversed(daemons):
            process.terminate()
        for process in daemons:
            process.wait(30)
        del os.environ["SLURM_CONF"]


def _idle() -> bool:
    found = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, timeout=60)
    return "idle" in found.stdout


def _devices(folder: Path) -> str:
    """Files that look like GPUs to SLURM; where none can be made, it only counts."""
    try:
        for number in range(GPUS):
            os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(240, number))
    except OSError:
        return f" Count={GPUS}"
    return f" File={folder}/gpu[0-{GPUS - 1}]"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
