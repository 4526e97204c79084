"""Ray itself: started on this machine for one sweep, or found running; and what it has to offer."""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kd.errors import ConfigError
from kd.locks import LOCK, is_owned, owned

PREFIX = "kd-ray-"  # of the folders with the sockets and logs of the Rays that were started here
LONG_AGO_S = 3600.0  # making or removing such a folder takes less
OBJECT_STORE = 80 * 1024**2  # bytes; tasks and outcomes are small, and less than 75 MiB is refused


@dataclass(frozen=True)
class Offer:
    """What there is to reserve: sums over all machines."""

    cpus: float
    gpus: float
    most_gpus: float  # of one machine


class Session:
    """A connection to Ray. `address` None: Ray is started here, and ended by `close`."""

    def __init__(self, address: str | None) -> None:
        self.is_ours = address is None
        if address is not None:
            _check_address(address)
        self._open = ExitStack()
        with ExitStack() as opening:
            # what a running cluster has (processors, memory for objects) must not be given
            settings = _settings_here(opening) if address is None else {"address": address}
            with _signal_handlers_kept():
                _initialise(settings, address)
            self._open = opening.pop_all()

    def offer(self) -> Offer:
        """What the cluster's living machines have, whether it is in use or not."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = [node.get("GPU", 0.0) for node in nodes]
        return Offer(sum(node.get("CPU", 0.0) for node in nodes), sum(gpus), max(gpus, default=0.0))

    def close(self) -> None:
        """End what was started here, its processes and its folder; let go of a cluster."""
        import ray

        ray.shutdown()
        self._open.close()


def require_ray() -> None:
    """Raise `ConfigError` where Ray is not installed."""
    if find_spec("ray") is None:
        raise ConfigError("hydra/launcher=ray needs the package ray, which is not installed: pip install ray")


def _initialise(settings: dict[str, Any], address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray._private import worker

    logging.getLogger("ray").setLevel(logging.ERROR)

    # Ray's words on a worker that died: a screenful each, on standard output. An outcome says it in a sentence.
    worker._worker_logs_enabled = False
    try:
        ray.init(log_to_driver=False, configure_logging=False, **settings)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if address is None:
            raise ConfigError(f"Ray cannot be started on this machine: {error}") from error
        raise ConfigError(_no_cluster(address, error)) from error
    except BaseException:  # interrupted: end what has been started
        ray.shutdown()
        raise


def _check_address(address: str) -> None:
    """Raise `ConfigError` where nothing listens: Ray itself would try for two minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ConfigError(
            f"Expected `hydra.launcher.address` to be auto or HOST:PORT, but got {address!r}. A sweep is started on "
            "one of the cluster's machines, where auto will do."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(_no_cluster(address, error)) from error


def _no_cluster(address: str, error: Exception) -> str:
    return (
        f"Cannot use a Ray cluster at hydra.launcher.address={address} ({str(error).rstrip('.')}). Start one with `ray "
        "start --head` and the sweep on one of its machines, with RAY_AUTH_MODE=token in the environment if Ray "
        "speaks of a token; or leave the address out to use this machine alone."
    )


def _settings_here(opening: ExitStack) -> dict[str, Any]:
    """A small Ray: no dashboard, and no processor cores, for each of which it would start a worker that stays idle.

    How many jobs run at once is up to the launcher; the GPUs are found and given out by Ray.
    """
    parent = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    return {
        "address": "local",  # whatever RAY_ADDRESS says
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
        "_temp_dir": str(opening.enter_context(_temporary_folder(parent))),
    }


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder with a short name, as names of sockets must be; those that killed processes left are removed.

    It gets its name once its lock is held: whoever sees the name and a lock that is free sees one of the dead.
    """
    _remove_left(parent)
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
    folder = parent / hidden.name.removeprefix(".")
    try:
        with owned(hidden):
            hidden.rename(folder)
            try:
                yield folder
            finally:  # under the lock: nobody else removes it too
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _remove_left(parent: Path) -> None:
    """Remove the folders of dead Rays. Each is hidden first, so that only one process removes it."""
    for left in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or another sweep was faster
            if (left / LOCK).exists() and not is_owned(left):
                shutil.rmtree(left.rename(parent / f".{left.name}"), ignore_errors=True)
    for hidden in parent.glob(f".{PREFIX}*"):  # killed in the middle of making or removing it
        with suppress(OSError):
            if time.time() - hidden.stat().st_mtime > LONG_AGO_S:
                shutil.rmtree(hidden)


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray takes over SIGTERM, and would end the sweep with a status of its own: while it starts, and ever after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # from Ray's handler
        if callable(before):
            before(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
