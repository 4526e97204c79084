"""The processes of a data-parallel run (`trainer=ddp`): starting them, and what the first one tells the others.

Process 0 leads: it alone decides, writes and prints, as a run of one process does. The others follow (`kd.follow`):
they wait until it announces a network to train, and train it with it. Notes from the leader go through torch's
key-value store and not through a collective operation, because a leader may wait for hours for another run's network,
and because a process that waits inside a collective operation hears no signal.

Nothing here imports torch before there are several processes.
"""

import atexit
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.errors import ConfigError, UserError
from kd.launch import GRACE_S, MEETING
from kd.launch import launch as launch
from kd.schema import TrainerConfig

if TYPE_CHECKING:
    import torch

TIMEOUT = timedelta(minutes=30)  # of one collective operation, and of meeting
POLL_S = 0.1
FAREWELL_S = 2.0  # for the others to hear that all is done, and for the leader to say what is wrong
#: how a broken connection between processes reads, in gloo's and NCCL's words
BROKEN = ("gloo", "Connection", "NCCL", "Broken pipe", "Socket", "socket")


class ProcessLostError(UserError):
    """Another process of the run has ended, and the training cannot go on without it."""

    status = 1


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that were started together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among those of this machine
    local_world: int = 1


def here() -> Place:
    """This process's place, by what `kd.launch`, torchrun or srun has put into its environment."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, world = _number("RANK"), _number("WORLD_SIZE")
        return Place(rank, world, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", world))
    if (tasks := _number("SLURM_STEP_NUM_TASKS", 1)) > 1:
        on_each = tasks // max(1, _number("SLURM_STEP_NUM_NODES", 1))
        return Place(_number("SLURM_PROCID"), tasks, _number("SLURM_LOCALID"), on_each)
    return Place()


def place(trainer: TrainerConfig) -> Place:
    """This process's place in its run: that of the only process, unless the run is data-parallel.

    Raises `ConfigError` if the processes that are there are not those that the configuration asks for.
    """
    found = here()
    if trainer.strategy != "ddp" or found.world == 1:
        return Place()
    local = _devices(trainer)
    if found.world != local * trainer.num_nodes or found.local_world != local:
        raise ConfigError(
            f"{found.world} processes were started for this run, {found.local_world} on this machine, but "
            f"trainer.devices={trainer.devices} with trainer.num_nodes={trainer.num_nodes} asks for {local} on each of "
            f"{trainer.num_nodes}. Start one process per device (srun: --nodes={trainer.num_nodes} "
            f"--ntasks-per-node={local}; torchrun: --nnodes={trainer.num_nodes} --nproc-per-node={local}), or change "
            "trainer.devices and trainer.num_nodes."
        )
    return found


def follows(trainer: TrainerConfig) -> bool:
    """Whether another process leads the run that this one belongs to."""
    return place(trainer).rank > 0


def processes(trainer: TrainerConfig) -> int:
    """How many processes train each network of a run, those on other machines included."""
    return _devices(trainer) * trainer.num_nodes if trainer.strategy == "ddp" else 1


def processes_to_launch(trainer: TrainerConfig) -> int:
    """How many processes must be started for a run that has only this one; 0 if it has what it needs.

    Raises `ConfigError` for several machines, whose processes must be started by torchrun or srun.
    """
    if trainer.strategy != "ddp" or here().world > 1:
        return 0
    wanted = _devices(trainer)
    if trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={trainer.num_nodes}: this command starts processes on its own machine only. On every "
            f"machine start it with torchrun (--nnodes={trainer.num_nodes} --nproc-per-node={wanted} "
            f"--rdzv-backend=c10d --rdzv-endpoint=HOST:PORT -m kd.run ...), or all at once with srun "
            f"(--nodes={trainer.num_nodes} --ntasks-per-node={wanted})."
        )
    return wanted if wanted > 1 else 0


def own_device(trainer: TrainerConfig) -> Any:
    """`trainer.devices` for this process alone. Raises `ConfigError` if there are fewer GPUs than processes."""
    own = place(trainer)
    if own.world == 1:
        return 1 if trainer.strategy == "ddp" and trainer.devices in ("auto", -1) else trainer.devices
    import torch

    if trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available()):
        return 1
    if (found := torch.cuda.device_count()) < own.local_world:
        raise ConfigError(
            f"trainer.devices={trainer.devices} asks for {own.local_world} GPUs, but this machine shows {found}. "
            "Ask for fewer, or add trainer.accelerator=cpu."
        )
    return [trainer.devices[own.local_rank] if isinstance(trainer.devices, list) else own.local_rank]


def asks_for_ddp(given: list[str]) -> bool:
    """Whether a command's arguments, as they are typed, ask for data-parallel training."""
    return not {"trainer=ddp", "trainer.strategy=ddp"}.isdisjoint(given)


def mute_followers(given: list[str]) -> None:
    """Let only the first of several processes print: they would all say the same. `given`: the command's arguments."""
    if (MEETING in os.environ or asks_for_ddp(given)) and here().rank > 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (for as long as the process lives)


def let_the_leader_speak() -> None:
    """Give the first process time to say what is wrong: a muted one that ended at once might take it along."""
    if getattr(sys.stderr, "name", "") == os.devnull:
        time.sleep(FAREWELL_S)


class Team:
    """The processes that train one run together; alone, it does nothing.

    The leader announces, the others ask for the `next_task`.
    """

    def __init__(self, trainer: TrainerConfig | None = None) -> None:
        self.place = Place() if trainer is None else place(trainer)
        self._trainer = trainer
        self._count = 0
        if self.size == 1:
            return
        _end_with_parent()
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        _name_meeting_point()
        url = f"file://{os.environ[MEETING]}" if MEETING in os.environ else "env://"
        arguments = (self.place.rank, self.size) if MEETING in os.environ else ()
        store, *_ = next(rendezvous(url, *arguments, timeout=TIMEOUT))
        self._meeting, self._notes = PrefixStore("meeting", store), PrefixStore("notes", store)
        if self.leads:
            atexit.register(self.dismiss)  # also when an error ends this process

    @property
    def size(self) -> int:
        return self.place.world

    @property
    def leads(self) -> bool:
        return self.place.rank == 0

    def announce(self, task: dict[str, Any]) -> None:
        """Tell the others what to do next: plain values."""
        self._tell(task)

    def dismiss(self) -> None:
        """Tell the others that there is nothing left to do; once is enough."""
        if self.size > 1 and self.leads and self._count >= 0:
            with suppress(RuntimeError):  # nobody is left to be told
                self._tell(None)
                heard = [_heard(rank) for rank in range(1, self.size)]
                until = time.monotonic() + FAREWELL_S
                while time.monotonic() < until and not self._notes.check(heard):
                    time.sleep(POLL_S)
            self._count = -1

    def close(self) -> None:
        """End the connections, when all is done."""
        if self.size > 1:
            import torch.distributed as dist

            self.dismiss()
            if dist.is_initialized():
                dist.destroy_process_group()

    def next_task(self) -> dict[str, Any] | None:
        """Wait for what the leader announces; None when it is done, or gone."""
        key = str(self._count)
        try:
            while not self._notes.check([key]):
                time.sleep(POLL_S)
            told = json.loads(self._notes.get(key))
            if told is None:
                self._notes.set(_heard(self.place.rank), "")
        except RuntimeError:  # the store lives with the leader
            return None
        self._count += 1
        return None if told is None else dict(told)

    def meet(self, device: "torch.device") -> None:
        """Connect all processes for training, once; every process calls this."""
        import torch.distributed as dist

        if self.size == 1 or dist.is_initialized():
            return
        on_gpu = device.type == "cuda"
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=self._meeting,
            rank=self.place.rank,
            world_size=self.size,
            timeout=TIMEOUT,
            device_id=device if on_gpu else None,
        )

    def _tell(self, task: dict[str, Any] | None) -> None:
        if self.size > 1:
            self._notes.set(str(self._count), json.dumps(task))
            self._count += 1


def _heard(rank: int) -> str:
    return f"heard by {rank}"


def is_broken_connection(error: BaseException) -> bool:
    """Whether an exception means that another process has gone."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in BROKEN)


def _devices(trainer: TrainerConfig) -> int:
    """The number of devices, and so of processes, on each machine."""
    if isinstance(trainer.devices, list):
        return len(trainer.devices)
    if trainer.devices not in ("auto", -1):
        return int(trainer.devices)
    if trainer.accelerator == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _number(name: str, default: int = 0) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default


def _name_meeting_point() -> None:
    """Give srun's processes the variables that torchrun's have: torch and Lightning go by them."""
    if "RANK" in os.environ:
        return
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    own, slurm = here(), SLURMEnvironment(auto_requeue=False)
    names: dict[str, int | str] = {"RANK": own.rank, "WORLD_SIZE": own.world, "LOCAL_RANK": own.local_rank}
    names |= {"LOCAL_WORLD_SIZE": own.local_world, "GROUP_RANK": _number("SLURM_NODEID")}
    names |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": slurm.main_port}
    os.environ.update({name: str(value) for name, value in names.items()})


def _end_with_parent() -> None:
    """End when the process that started this one is gone: its end of our standard input closes."""
    if MEETING not in os.environ:
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)  # it hears nothing inside a collective operation

    threading.Thread(target=watch, daemon=True).start()
