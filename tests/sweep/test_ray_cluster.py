"""`hydra/launcher=ray` on a running cluster: one machine, whose two GPUs are made up."""

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kd.errors import ConfigError
from kd.sweep import work
from kd.sweep.ray import RayLauncher
from kd.sweep.task import DONE, FAILED
from tests.sweep.ray_tasks import by_value, most_at_once, probe, tasks, wait_until

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a Ray with ports of its own choice, as `ray start --head --num-gpus=2` starts it."""
    folder = Path(tempfile.mkdtemp(prefix="kd-head-", dir="/tmp"))  # short, for the names of sockets
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"]
        command += ["--num-gpus=2", "--num-cpus=8", "--include-dashboard=false", f"--temp-dir={folder}"]
        command += ["--object-store-memory=80000000", f"--ray-client-server-port={free_port()}"]
        with (folder / "head.txt").open("w") as out:
            head = subprocess.Popen(command, stdout=out, stderr=out)
        by_value()
        try:
            yield address(folder / "head.txt", head)
        finally:
            head.terminate()
            head.wait(30)
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def address(said: Path, head: "subprocess.Popen[bytes]") -> str:
    """Where the cluster listens, once it has said so."""
    wait_until(lambda: head.poll() is not None or "--block" in said.read_text(), seconds=90)
    found = re.search(r"ray start --address='([^']+)'", said.read_text())
    assert found, said.read_text()
    return found[1]


@pytest.fixture
def launched(cluster, tmp_path, monkeypatch):
    """Make launchers for the cluster, which are closed at the end of the test."""
    monkeypatch.setattr(work, "perform", probe)
    made = []

    def launch(**settings):
        made.append(RayLauncher(tmp_path, address=cluster, **settings))
        return made[-1]

    yield launch
    for launcher in made:
        launcher.close()


def test_every_job_has_a_gpu_of_its_own_and_waits_for_it(launched, tmp_path):
    launcher = launched()
    assert launcher.slots() == 2
    given = tasks(tmp_path, 5)
    given.append(tasks(tmp_path, 1, "alone", trainer={"devices": 2})[0])
    given.append(tasks(tmp_path, 1, "cpu", trainer={"accelerator": "cpu"})[0])
    given.append(tasks(tmp_path, 1, "huge", trainer={"devices": 3})[0])
    outcomes = {outcome.task.name: outcome for outcome in launcher.run(given)}
    huge = outcomes.pop("huge-0")
    assert (huge.state, huge.status) == (FAILED, 2)
    assert "huge-0 needs 3 GPUs, but Ray has 2 GPUs on one machine" in huge.error
    assert [outcome.state for outcome in outcomes.values()] == [DONE] * 7
    seen = {name: json.loads((tmp_path / name / "note.json").read_text()) for name in outcomes}
    assert sorted(seen.pop("alone-0")["CUDA_VISIBLE_DEVICES"].split(",")) == ["0", "1"]
    assert seen.pop("cpu-0")["CUDA_VISIBLE_DEVICES"] == ""
    by_gpu = {gpu: [one for one in seen.values() if one["CUDA_VISIBLE_DEVICES"] == gpu] for gpu in ("0", "1")}
    assert sum(map(len, by_gpu.values())) == 5
    assert most_at_once(list(seen.values())) == 2
    for found in by_gpu.values():
        assert most_at_once(found) == 1
        assert len({note["pid"] for note in found}) == 1  # a worker stays with its GPU


def test_more_gpus_per_job_than_there_are_is_refused_at_once(launched, tmp_path):
    with pytest.raises(ConfigError, match="gpus_per_job=3 asks for 3 GPUs, but Ray has 2 GPUs on one machine"):
        next(launched(gpus_per_job=3).run(tasks(tmp_path, 1)))


def test_two_jobs_share_each_gpu_if_they_are_told_to(launched):
    assert launched(gpus_per_job=0.5).slots() == 4


def test_a_cluster_without_use_of_its_gpus_offers_its_cores(launched):
    assert launched(gpus_per_job=0, cpus_per_job=2).slots() == 4
