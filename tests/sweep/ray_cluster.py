"""A running Ray cluster for tests: one machine, with two GPUs that are made up, and eight cores."""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sweep.ray_tasks import wait_until

START = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0", "--include-dashboard=false"]
OFFER = ["--num-gpus=2", "--num-cpus=8", "--object-store-memory=80000000"]


@contextmanager
def running_cluster() -> Iterator[str]:
    """Start it as `ray start --head` does, on ports that are free; yields its address, and ends it."""
    folder = Path(tempfile.mkdtemp(prefix="kd-head-", dir="/tmp"))  # short, for the names of sockets
    places = [f"--temp-dir={folder}", f"--ray-client-server-port={_free_port()}"]
    said = folder / "head.txt"
    with pytest.MonkeyPatch.context() as patch, said.open("w") as out:
        patch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")
        head = subprocess.Popen([sys.executable, *START, *OFFER, *places], stdout=out, stderr=out)
    try:
        wait_until(lambda: head.poll() is not None or "--block" in said.read_text(), seconds=120)
        address = re.search(r"ray start --address='([^']+)'", said.read_text())
        assert address, said.read_text()
        yield address[1]
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
