"""`hydra/launcher=ray` with a real Ray: a cluster with two made-up GPUs, and one that is started for a sweep."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from kd import locks
from kd.errors import ConfigError
from kd.sweep import work
from kd.sweep.ray import RayLauncher
from kd.sweep.ray import session as ray_session
from kd.sweep.ray.worker import Worker
from kd.sweep.task import DONE, FAILED
from tests.commands import Command
from tests.sweep.ray_cluster import running_cluster
from tests.sweep.ray_tasks import alive, by_value, most_at_once, notes, probe, tasks, wait_until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_cluster")
needs_ray = pytest.mark.skipif(ray_session.find_spec("ray") is None, reason="needs the package ray")


@pytest.fixture(scope="module")
def cluster():
    with running_cluster() as address:
        by_value()
        yield address


@pytest.fixture
def launched(cluster, tmp_path, monkeypatch):
    """Make launchers on the cluster; each is closed at the end of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "perform", probe)
    made = []

    def launch(**settings):
        made.append(RayLauncher(tmp_path, address=cluster, **settings))
        return made[-1]

    yield launch
    for launcher in made:
        launcher.close()


@needs_ray
def test_every_job_has_a_gpu_of_its_own_and_waits_for_it(launched, tmp_path):
    launcher = launched()
    assert launcher.slots() == 2
    given = tasks(tmp_path, 5)
    given[0].config["until"] = str(given[1].folder / "note.json")  # two at a time, however slowly a worker starts
    given += tasks(tmp_path, 1, "both", trainer={"devices": 2})
    given += tasks(tmp_path, 1, "cpu", trainer={"accelerator": "cpu"})
    given += tasks(tmp_path, 1, "huge", trainer={"devices": 3})
    outcomes = {outcome.task.name: outcome for outcome in launcher.run(given)}
    huge = outcomes.pop("huge-0")
    assert (huge.state, huge.status) == (FAILED, 2)
    assert "huge-0 needs 3 GPUs, but Ray has 2 GPUs on one machine" in huge.error
    assert [outcome.state for outcome in outcomes.values()] == [DONE] * 7
    seen = {name: json.loads((tmp_path / name / "note.json").read_text()) for name in outcomes}
    assert sorted(seen.pop("both-0")["CUDA_VISIBLE_DEVICES"].split(",")) == ["0", "1"]
    assert seen.pop("cpu-0")["CUDA_VISIBLE_DEVICES"] == ""
    by_gpu = {gpu: [one for one in seen.values() if one["CUDA_VISIBLE_DEVICES"] == gpu] for gpu in ("0", "1")}
    assert sum(map(len, by_gpu.values())) == 5
    assert most_at_once(list(seen.values())) == 2
    for found in by_gpu.values():
        assert most_at_once(found) == 1
        assert len({note["pid"] for note in found}) == 1  # a worker stays with its GPU


@needs_ray
def test_slots_are_filled_from_a_lazy_list_and_workers_are_reused(launched, tmp_path):
    launcher = launched(slots=2, gpus_per_job=0, cpus_per_job=3)
    given, ended = [], []

    def coming():
        for task in tasks(tmp_path, 5):
            assert len(given) - len(ended) < 2, "taken before it could be started"
            given.append(task)
            yield task

    for outcome in launcher.run(coming()):
        ended.append(outcome)
    assert [outcome.state for outcome in ended] == [DONE] * 5
    assert {outcome.task.name for outcome in ended} == {task.name for task in given}
    found = notes(tmp_path)
    assert most_at_once(found) == 2
    assert len({note["pid"] for note in found}) == 2
    assert {note["cwd"] for note in found} == {str(tmp_path)}
    assert {note["OMP_NUM_THREADS"] for note in found} == {"3"}
    assert {note["CUDA_VISIBLE_DEVICES"] for note in found} == {""}


@needs_ray
def test_a_killed_worker_and_a_stumbling_one_fail_alone(launched, tmp_path, capfd):
    given = tasks(tmp_path, 5)
    given[1].config["dies"] = True
    given[3].config["raises"] = True
    outcomes = {outcome.task.name: outcome for outcome in launched().run(given)}
    killed, stumbled = outcomes.pop("job-1"), outcomes.pop("job-3")
    assert [outcome.state for outcome in outcomes.values()] == [DONE] * 3
    assert (killed.state, killed.status) == (stumbled.state, stumbled.status) == (FAILED, 1)
    assert "on here, since now) is gone: killed (kill -9" in killed.error
    assert "job-1/log.txt" in killed.error
    assert "RuntimeError: this was not foreseen" in stumbled.error
    assert not list(tmp_path.glob("*.mark"))
    assert "".join(capfd.readouterr()) == ""  # Ray has much to say about a dead worker


@needs_ray
def test_leaving_early_ends_the_workers(launched, tmp_path):
    given = tasks(tmp_path, 4, sleep=60)
    given[0].config["sleep"] = 0
    outcomes = launched(gpus_per_job=0, slots=2).run(given)
    assert next(outcomes).task.name == "job-0"
    wait_until(given[1].mark.exists)
    pid = owner(given[1].mark)
    assert alive(pid)
    outcomes.close()
    wait_until(lambda: not alive(pid))
    assert not list(tmp_path.glob("*.mark"))
    assert len(notes(tmp_path)) == 1


@needs_ray
def test_slots_follow_from_what_there_is(launched):
    for given, slots in [({"gpus_per_job": 0.5}, 4), ({"gpus_per_job": 0.6}, 2), ({"gpus_per_job": 2}, 1)]:
        launcher = launched(**given)
        assert launcher.slots() == slots
        launcher.close()
    assert launched(gpus_per_job=0, cpus_per_job=2).slots() == 4


@needs_ray
def test_more_gpus_than_there_are_are_refused_at_once(launched, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="gpus_per_job=3 asks for 3 GPUs, but Ray has 2 GPUs on one machine"):
        next(launched(gpus_per_job=3).run(tasks(tmp_path, 1)))
    launcher = launched(slots=8, gpus_per_job=0.6)
    session = launcher._started()[0]
    monkeypatch.setattr(session, "is_ours", True)  # a machine gets no more GPUs, a cluster may
    with pytest.raises(ConfigError, match=r"slots=8 .* is more than the 2 GPUs of this machine can hold: 2"):
        launcher._share(session)


DRIVER = """
import signal, sys
from pathlib import Path
from kd.leaving import preempted
from kd.sweep import work
from kd.sweep.ray import RayLauncher
from tests.sweep.ray_tasks import by_value, probe, tasks

signal.signal(signal.SIGTERM, preempted)
by_value()
work.perform = probe
launcher = RayLauncher(Path(sys.argv[1]), slots=2, address=sys.argv[2] if sys.argv[2:] else None)
try:
    list(launcher.run(tasks(Path(sys.argv[1]), 3, sleep=300)))
finally:
    launcher.close()
"""


def stop_driver(folder: Path, sign: int, *address: str) -> "subprocess.Popen[bytes]":
    """Start a sweep of endless tasks and end its driver when both workers are at one; returns when all are gone."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder), *address], cwd=ROOT)
    marks = [folder / "job-0.mark", folder / "job-1.mark"]
    wait_until(lambda: driver.poll() is not None or all(mark.exists() for mark in marks), seconds=120)
    assert driver.poll() is None
    workers = [owner(mark) for mark in marks]
    assert all(map(alive, workers))
    driver.send_signal(sign)
    driver.wait(60)
    wait_until(lambda: not any(map(alive, workers)))
    return driver


@needs_ray
def test_a_terminated_driver_leaves_nothing_of_the_ray_that_it_started(tmp_path):
    driver = stop_driver(tmp_path, signal.SIGTERM)
    assert driver.returncode == 143
    assert not list(tmp_path.glob("*.mark"))
    wait_until(lambda: not left_by(driver.pid), seconds=240)


@needs_ray
def test_the_workers_of_a_killed_driver_end_on_a_cluster_too(cluster, tmp_path):
    assert stop_driver(tmp_path, signal.SIGKILL, cluster).returncode == -signal.SIGKILL


@needs_ray
def test_a_sweep_whose_driver_was_killed_is_continued(tmp_path, monkeypatch, capsys):
    arguments = ["-m", "method.temperature=2,4", "seed=0,1", "trainer.max_epochs=20", "data.train_limit=192"]
    arguments += ["logger=csv", "latency=false", "hydra/launcher=ray", "hydra.launcher.slots=2"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "kd.run", *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    results = tmp_path.glob("outputs/digits_kd/sweep-*/*/result.json")
    wait_until(lambda: driver.poll() is not None or any(tmp_path.glob("outputs/*/sweep-*/*/result.json")), seconds=240)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    # an orphaned worker may still finish its run; Ray's own agents take a minute longer and write no result
    wait_until(lambda: not [line for line in left_by(driver.pid) if "Agent" not in line], seconds=240)
    finished = {path: path.stat().st_mtime_ns for path in results}
    assert 1 <= len(finished) < 4

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = Command(tmp_path, monkeypatch, capsys)(*arguments)
    assert done.status == 0, done.err
    assert f"4 jobs, {len(finished)} of them finished before, 2 at once" in done.out
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/digits_kd/sweep-*/*/result.json")}
    assert len(after) == 4
    assert {path: after[path] for path in finished} == finished
    assert not left_by(os.getpid())


def owner(mark: Path) -> int:
    return int(json.loads(mark.read_text())["pid"])


def left_by(driver: int) -> list[str]:
    """Processes of a Ray that a driver started: they name its folder, or hold a file in it open, as its workers."""
    listed = subprocess.run(["ps", "-eo", "pid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in listed.splitlines()]
    mark = f"_{driver}/"
    return [
        args
        for pid, state, args in lines
        if "Z" not in state and int(pid) != driver and (mark in args or any(mark in path for path in open_files(pid)))
    ]


def open_files(pid: str) -> list[str]:
    found = []
    with suppress(OSError):  # it has ended
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.append(str(link.readlink()))
    return found


def test_a_machine_that_does_not_share_the_folder_is_told(tmp_path):
    [task] = tasks(tmp_path, 1)
    outcome = Worker(str(tmp_path / "elsewhere"), threads=1).do(probe, task)
    assert (outcome.state, outcome.status) == (FAILED, 2)
    assert f"has no folder {tmp_path / 'elsewhere'}" in outcome.error and "share the folder" in outcome.error


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"slots": 0}, "`hydra.launcher.slots` to be a whole number of at least 1, but got 0"),
        ({"slots": "two"}, "but got 'two'"),
        ({"cpus_per_job": 0}, "`hydra.launcher.cpus_per_job`"),
        ({"gpus_per_job": -1}, "`hydra.launcher.gpus_per_job`"),
        ({"gpus_per_job": 1.5}, "a fraction of one GPU or a whole number of GPUs, but got 1.5"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(tmp_path, given, words):
    with pytest.raises(ConfigError, match=words):
        RayLauncher(tmp_path, **given)


@needs_ray
@pytest.mark.parametrize(
    ("address", "words"),
    [
        (6379, "auto or HOST:PORT, but got '6379'"),
        ("ray://head:10001", "auto or HOST:PORT, but got 'ray://head:10001'"),
        ("127.0.0.1:9", r"Cannot use a Ray cluster at hydra.launcher.address=127.0.0.1:9 \(.*refused\). Start"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path, address, words):
    with pytest.raises(ConfigError, match=words):
        next(RayLauncher(tmp_path, address=address).run([]))


def test_a_ray_that_is_being_started_keeps_its_folder(monkeypatch, tmp_path):
    """Another sweep clears up between any two steps of the making."""
    seen = []

    class Watched(FileLock):
        def _open_lock_file(self):
            opened = super()._open_lock_file()
            if Path(self.lock_file).parent.name.startswith(".kd-ray-") or not seen:  # the lock is there, and not held
                seen.append(self.lock_file)
                clear_up()
            return opened

    def clear_up():
        with monkeypatch.context() as other:
            other.setattr(locks, "FileLock", FileLock)
            with ray_session._temporary_folder(tmp_path):
                pass

    monkeypatch.setattr(locks, "FileLock", Watched)
    with ray_session._temporary_folder(tmp_path) as folder:
        clear_up()
        assert seen and locks.is_owned(folder)
        assert (folder / locks.LOCK).is_file()
    assert not list(tmp_path.iterdir())


def test_the_folders_of_dead_rays_are_removed(tmp_path):
    for name in ("kd-ray-dead", ".kd-ray-old", ".kd-ray-new", "kd-ray-by-hand"):
        (tmp_path / name).mkdir()
    (tmp_path / "kd-ray-dead" / locks.LOCK).touch()
    os.utime(tmp_path / ".kd-ray-old", (1, 1))  # of a process that was killed while it made or removed it
    with ray_session._temporary_folder(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".kd-ray-new", "kd-ray-by-hand"}


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_session, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install ray"):
        RayLauncher(tmp_path)
