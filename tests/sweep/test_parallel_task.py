"""A sweep's task on several processes: what becomes of it where the first process has nothing to do, or fails."""

import json
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from kd import folder as folders
from kd import launch
from kd.errors import StoreError
from kd.files import PAGE, RESULT
from kd.locks import owned
from kd.parallel import ProcessLostError
from kd.sweep import parallel_task, work
from kd.sweep.task import DONE, ELSEWHERE, Task
from tests.commands import QUICK, Command, configured

ROOT = Path(__file__).parents[2]
TOGETHER = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")


@pytest.fixture
def task(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", launch.MEETING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Task("job", asdict(configured(*QUICK, *TOGETHER)), tmp_path / "job", tmp_path / "job.mark", cwd=tmp_path)


def finish(task: Task) -> None:
    content = {"status": "done", "config_hash": folders.config_hash(configured(*QUICK, *TOGETHER))}
    (task.folder / RESULT).write_text(json.dumps(content))
    (task.folder / PAGE).touch()


def test_no_processes_are_started_where_there_is_nothing_to_do(task, monkeypatch):
    monkeypatch.setattr(work, "together", lambda *_: pytest.fail("processes were started"))
    with owned(task.folder):
        assert work.perform(task).state == ELSEWHERE
    finish(task)
    assert work.perform(task).state == DONE


MEMBER = """
import pickle, sys
from kd.sweep.work import perform
print(perform(pickle.load(sys.stdin.buffer)).state)
"""


def test_tasks_of_srun_all_end_where_the_first_has_nothing_to_do(task):
    """As torchrun and srun start them, with nobody to end those that are left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}

    def start(rank: int) -> subprocess.Popen:
        own = {**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = subprocess.Popen(
            [sys.executable, "-c", MEMBER], env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        process.stdin.write(pickle.dumps(task))
        process.stdin.close()
        return process

    with owned(task.folder):
        leader, follower = start(0), start(1)
        try:
            assert leader.wait(240) == follower.wait(120) == 0
        finally:
            leader.kill()
            follower.kill()
    assert leader.stdout.read() == b"elsewhere\n"
    leader.stdout.close()
    follower.stdout.close()


def test_the_process_that_fails_first_says_why(task, tmp_path, monkeypatch):
    given, answer = tmp_path / "task", tmp_path / "outcome.json"
    given.write_bytes(pickle.dumps(task))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(parallel_task, "mute_followers", lambda _: None)
    task.folder.mkdir()
    for rank, error in ((1, StoreError("the cause")), (0, ProcessLostError("what follows from it"))):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(work, "_do", fail)
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        if rank == 0:  # at work before the other has failed
            monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
        assert parallel_task.main(str(given), str(answer)) == error.status
    assert json.loads(answer.read_text())["error"] == "the cause"
    assert (task.folder / "error.txt").read_text().startswith("the cause\n\nTraceback")


def test_a_sweep_of_such_runs_is_not_started_by_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = Command(tmp_path, monkeypatch, capsys)("-m", *TOGETHER, "seed=0,1")
    assert done.status == 2
    assert "started as 2 processes" in done.err and "without torchrun or srun" in done.err
