"""A sweep as one thing: its folder, what is skipped, continued, retried; failures; two at once."""

import gc
import json
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from kd.locks import owned
from kd.sweep import work
from kd.sweep.book import Book
from kd.sweep.record import read_sweep
from kd.sweep.task import Outcome, Task
from tests.commands import QUICK, Command, configured, started, wait_for

ROOT = Path(__file__).parents[2]
SWEEP = ("-m", *QUICK, "method.temperature=2,4", "seed=0,1")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command(tmp_path, monkeypatch, capsys)


def only_sweep(folder: Path) -> Path:
    (sweep,) = folder.glob("outputs/digits_kd/sweep-*")
    return sweep


def states(sweep: Path) -> list[str]:
    content = read_sweep(sweep)
    assert content is not None
    return [job["state"] for job in content["jobs"]]


def test_a_sweep_leaves_every_result_and_says_what_came_out(command):
    done = command(*SWEEP)
    assert done.status == 0, done.err
    sweep = only_sweep(command.folder)
    content = read_sweep(sweep)
    assert content["status"] == "done"
    assert content["counts"] == {"done": 4}
    assert [job["overrides"] for job in content["jobs"]] == [
        [f"method.temperature={t}", f"seed={s}"] for t in (2, 4) for s in (0, 1)
    ]
    for job in content["jobs"]:
        result = json.loads((sweep / job["name"] / "result.json").read_text())
        assert result["config_hash"] == job["config_hash"]
        assert result["arms"]["student"]["val"]["accuracy"] == job["result"]["val_accuracy"]
        assert result["arms"]["student"]["test"]["accuracy"] == job["result"]["test_accuracy"]
        assert "student minimises" in (sweep / job["name"] / "log.txt").read_text()
    assert "temperature=2 seed=0  done" in done.out
    best = max(job["result"]["val_accuracy"] for job in content["jobs"])
    assert f"[4 of 4 done, 0 running, best on validation {best:.2%} (" in done.out
    assert f"python -m kd.report {sweep.relative_to(command.folder)}" in done.out
    assert not list((sweep / "running").iterdir())


def test_teacher_and_baselines_are_trained_before_the_jobs(command):
    done = command(*SWEEP)
    lines = done.out.splitlines()
    networks = [line.split("-")[0] for line in lines if line.startswith(("teacher-", "baseline-"))]
    assert networks == ["teacher", "baseline", "baseline"]
    assert "3 networks that the jobs share are trained first" in done.out
    for log in only_sweep(command.folder).glob("*_seed-*/log.txt"):
        text = log.read_text()
        assert "teacher  found in" in text and "baseline  found in" in text
        assert "student  training" in text


def test_the_same_command_again_trains_nothing(command):
    command(*SWEEP)
    sweep = only_sweep(command.folder)
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/result.json")}
    again = command(*SWEEP)
    assert again.status == 0
    assert "4 jobs, 4 of them finished before" in again.out
    assert "trained first" not in again.out
    assert {path: path.stat().st_mtime_ns for path in sweep.glob("*/result.json")} == before


def test_a_failing_job_stops_no_other_and_all_failures_are_listed(command):
    # a learning rate that overflows is known only in training
    sweep = ("-m", *QUICK, "optim=sgd", "optim.optimizer.lr=0.1,1e30", "seed=0,1")
    done = command(*sweep)
    assert done.status == 6
    content = read_sweep(only_sweep(command.folder))
    assert content["status"] == "failed"
    assert [job["state"] for job in content["jobs"]] == ["done", "done", "skipped", "skipped"]
    assert content["counts"] == {"done": 2, "skipped": 2}
    assert all("NaN" in job["error"]["message"] for job in content["jobs"][2:])
    for seed in (0, 1):
        assert f"skipped: lr=1e+30 seed={seed}: " in done.out
    assert "2 of 4 jobs have no result; the same command tries them again." in done.out


def test_what_would_learn_from_a_network_that_failed_is_not_tried(command):
    """A teacher that overflows, whose next generation would train it once more."""
    given = ("teacher=self", "teacher.generations=2", "optim=sgd", "optim.optimizer.lr=1e30", "seed=0")
    done = command("-m", *QUICK, *given)
    assert done.status == 6
    assert " failed in " in done.out
    assert done.out.count("trained first") == 1


def test_a_failed_job_is_retried_and_says_why_it_failed(command, monkeypatch):
    from kd import run
    from kd.errors import NumericError

    conduct = run.conduct

    def broken(config, folder, console, group=None):
        if config.seed == 1:
            raise NumericError(f"T = {config.method.temperature} broke")
        conduct(config, folder, console, group)

    monkeypatch.setattr(run, "conduct", broken)
    done = command(*SWEEP)
    assert done.status == 6
    sweep = only_sweep(command.folder)
    assert states(sweep) == ["done", "failed", "done", "failed"]
    assert "failed with status 5: temperature=2 seed=1: T = 2" in done.out
    assert "failed with status 5: temperature=4 seed=1: T = 4" in done.out
    (error,) = sweep.glob("temperature-4_seed-1-*/error.txt")
    assert error.read_text().startswith("T = 4")
    assert "Traceback" in error.read_text()
    monkeypatch.setattr(run, "conduct", conduct)
    assert command(*SWEEP).status == 0
    assert states(sweep) == ["done"] * 4
    assert [job["attempts"] for job in read_sweep(sweep)["jobs"]] == [1, 2, 1, 2]
    assert not error.exists()


def test_a_mistake_of_ours_in_one_job_is_told_with_a_traceback_in_its_folder(command, monkeypatch):
    from kd import run

    def broken(config, folder, console, group=None):
        raise KeyError("surprise")

    monkeypatch.setattr(run, "conduct", broken)
    done = command(*SWEEP)
    assert done.status == 6
    assert "failed with status 1: temperature=2 seed=0: KeyError: 'surprise'" in done.out
    assert "Traceback" in next(only_sweep(command.folder).glob("*/log.txt")).read_text()


def test_invalid_values_are_all_told_before_anything_is_trained(command):
    done = command("-m", *QUICK, "method.temperature=2,-1", "method.alpha=0.5,7")
    assert done.status == 2
    assert "3 of 4 jobs cannot run" in done.err
    assert "got -1" in done.err and "got 7" in done.err
    assert not (command.folder / "outputs").exists()


def test_what_only_a_trial_shows_is_told_before_anything_is_trained_too(command):
    done = command("-m", *QUICK, "method=kd,fitnets,rkd", "data.batch_size=64,0")
    assert done.status == 2
    assert "data.batch_size" in done.err
    done = command("-m", *QUICK, "model@student=mlp_16,resnet8", "method=kd,attention")
    assert done.status == 2
    assert "method=attention" in done.err and "mlp_16" in done.err
    assert not list(command.folder.glob("outputs/store/*/meta.json"))


def test_data_that_are_missing_are_looked_for_once_and_end_a_sweep_with_their_status(command, monkeypatch):
    from kd import build
    from kd.errors import DataError

    looked = []

    def missing(config):
        looked.append(config.seed)
        raise DataError("there are no such files")

    monkeypatch.setattr(build, "data", missing)
    done = command(*SWEEP)
    assert done.status == 3
    assert "2 of 2 jobs that were tried cannot run" in done.err and "there are no such files" in done.err
    assert len(looked) == 1


def test_forced_jobs_get_folders_of_their_own(command):
    command(*SWEEP)
    sweep = only_sweep(command.folder)
    done = command(*SWEEP, "force=true")
    assert done.status == 0, done.err
    assert len(list(sweep.glob("*/result.json"))) == 8
    again = list(sweep.glob("*-2/result.json"))
    assert len(again) == 4
    students = {json.loads(path.read_text())["arms"]["student"]["store_key"] for path in again}
    assert students <= {path.name for path in (sweep / "store-2").iterdir()}
    assert len(list(sweep.glob("networks/teacher-*/log.txt"))) == 1


def test_what_belongs_to_a_sweep_is_refused_in_a_run(command):
    for argument in ("hydra/launcher=basic", "join=true"):
        done = command(*QUICK, argument)
        assert done.status == 2
        assert "add -m" in done.err


def test_devices_that_a_launcher_cannot_give_are_refused_before_anything_runs(command):
    ray = ("hydra/launcher=ray", "hydra.launcher.slots=1")
    for arguments, words in (
        ((*ray, "trainer.devices=[1]"), "trainer.devices=1."),
        (("trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2"), "trainer.num_nodes=2: a job"),
    ):
        done = command(*SWEEP, "trainer.accelerator=cpu", *arguments)
        assert done.status == 2
        assert words in done.err
    assert not list(command.folder.glob("outputs/store/*/meta.json"))


@pytest.mark.parametrize(
    "given",
    [
        "hydra.launcher._target_=some.Launcher",
        "hydra.launcher._target_=kd.sweep.search.Settings",
        "hydra.launcher=null",
        "hydra.sweeper._target_=kd.sweep.ray.RayLauncher",
        "hydra.sweeper=null",
    ],
)
def test_an_unknown_launcher_or_sweeper_is_refused(command, given):
    done = command(*SWEEP, given)
    assert done.status == 2
    assert "Known: hydra/launcher=basic" in done.err


# --- two at once ------------------------------------------------------------------------------------------------------


def test_the_second_to_start_a_sweep_is_told_and_may_join(command):
    arguments = (*SWEEP, "logger.tags=[x]")
    from kd.sweep.plan import read_arguments

    folder = read_arguments(list(arguments)).folder
    with owned(folder):
        told = command(*arguments)
        assert told.status == 2
        assert f"is being done by process {os.getpid()}" in told.err
        assert "0 of 4 jobs are finished" in told.err
        joined = command(*arguments, "join=true")
    assert joined.status == 0, joined.err
    assert "4 jobs were done here" in joined.out
    assert len(list(folder.glob("*/result.json"))) == 4
    assert command(*arguments).status == 0
    assert states(folder) == ["done"] * 4


def test_a_forced_sweep_is_not_joined(command):
    """What its driver has finished would be done once more, in yet another folder."""
    from kd.sweep.plan import read_arguments

    with owned(read_arguments(list(SWEEP)).folder):
        told = command(*SWEEP, "force=true", "join=true")
    assert told.status == 2
    assert "cannot be joined" in told.err and str(os.getpid()) in told.err
    assert not list(command.folder.rglob("result.json"))


def test_one_who_joins_leaves_what_others_are_at(command):
    from kd.sweep.plan import Composer, grid, read_arguments

    arguments = read_arguments(list(SWEEP))
    jobs = Composer(arguments).jobs(grid(arguments))
    with owned(arguments.folder), owned(jobs[-1].folder):
        joined = command(*SWEEP, "join=true")
    assert "3 jobs were done here" in joined.out
    assert not (jobs[-1].folder / "result.json").exists()


def test_a_driver_waits_for_a_job_that_another_process_is_at(command, monkeypatch):
    """The other one leaves without a result: the job is then done here."""
    from kd.sweep import drive as module
    from kd.sweep.plan import Composer, grid, read_arguments

    arguments = read_arguments(list(SWEEP))
    jobs = Composer(arguments).jobs(grid(arguments))
    other = owned(jobs[1].folder)
    other.__enter__()
    # its own sleep only: others, as subprocess, sleep before the driver comes to wait
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: other.__exit__(None, None, None)))
    done = command(*SWEEP)
    assert done.status == 0, done.err
    assert "waiting for 1 jobs" in done.out
    assert states(arguments.folder) == ["done"] * 4


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_driver_that_is_ended_loses_no_finished_job(tmp_path, monkeypatch, capsys, sign, status):
    long = ("-m", "data.train_limit=320", "trainer.max_epochs=30", "logger=csv", "latency=false", "seed=0,1,2,3")
    process = started(tmp_path, *long)
    wait_for(process, lambda: len(list(tmp_path.glob("outputs/digits_kd/sweep-*/*/result.json"))) >= 2)
    process.send_signal(sign)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    sweep = only_sweep(tmp_path)
    finished = {path: path.stat().st_mtime_ns for path in sweep.glob("*/result.json")}
    assert 2 <= len(finished) < 4
    if sign != signal.SIGKILL:
        assert read_sweep(sweep)["status"] == "interrupted"
    done = Command(tmp_path, monkeypatch, capsys)(*long)
    assert done.status == 0, done.err
    assert f"4 jobs, {len(finished)} of them finished before" in done.out
    assert "trained first" not in done.out  # their networks were in the store
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert states(sweep) == ["done"] * 4


def test_a_disk_that_is_really_full_loses_no_finished_job(command):
    disk = command.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to be root, to have a small disk")
    places = ("hydra.sweep.dir=disk/sweep", "store.root=disk/store")
    sweep = ("-m", *QUICK, "method.temperature=1,2,3,4,5", *places)
    try:
        done = command(*sweep)
        assert done.status == 6
        assert "No space left on device" in done.out
        finished = {path: path.read_bytes() for path in disk.glob("sweep/*/result.json")}
        assert len(finished) > 0
        assert all(json.loads(content)["status"] == "done" for content in finished.values())
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert command(*sweep).status == 0
        assert states(disk / "sweep") == ["done"] * 5
        assert {path: path.read_bytes() for path in finished} == finished
    finally:
        gc.collect()  # what a failed job has mapped of the disk
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_fails_the_job_and_not_the_sweep(command, monkeypatch):
    from kd import run

    conduct = run.conduct

    def full(config, folder, console, group=None):
        if config.seed == 0:
            raise OSError(28, "No space left on device", str(folder / "x"))
        conduct(config, folder, console, group)

    monkeypatch.setattr(run, "conduct", full)
    done = command(*SWEEP)
    assert done.status == 6
    assert states(only_sweep(command.folder)) == ["failed", "done", "failed", "done"]
    assert "No space left on device" in done.out


def test_a_book_that_cannot_be_written_is_told_once_and_the_jobs_go_on(command, monkeypatch):
    from kd.sweep import book

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(book, "write_json", full)
    done = command(*SWEEP)
    assert done.status == 0, done.err
    assert done.err.count("sweep.json: No space left on device. The jobs go on.") == 1
    assert len(list(only_sweep(command.folder).glob("*/result.json"))) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", '{"jobs": 3}', '{"jobs": [3, {"config_hash": 1}]}'])
def test_a_damaged_sweep_json_is_written_anew(command, text):
    command(*SWEEP)
    sweep = only_sweep(command.folder)
    (sweep / "sweep.json").write_text(text)
    assert command(*SWEEP).status == 0
    assert states(sweep) == ["done"] * 4


def test_the_book_shows_who_is_at_work_and_is_written_seldom(tmp_path, monkeypatch):
    writes = []
    monkeypatch.setattr("kd.sweep.book.write_json", lambda path, content: writes.append(content))
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "a.json").touch()
    book = Book(tmp_path, [])
    assert book.running() == {"a"}
    for _ in range(100):
        book.write()
    book.write("done")
    assert [content["status"] for content in writes] == ["running", "done"]


def test_a_worker_that_finds_its_job_taken_leaves_the_mark_of_the_one_who_has_it(tmp_path):
    task = Task("job", asdict(configured()), tmp_path / "job", tmp_path / "job.json", cwd=tmp_path)
    task.mark.write_text("of another")
    with owned(task.folder):
        assert work.perform(task).state == "elsewhere"
    assert task.mark.read_text() == "of another"


def test_a_worker_leaves_its_mark_while_it_works(tmp_path, monkeypatch):
    task = Task("job", asdict(configured()), tmp_path / "job", tmp_path / "running" / "job.json")
    seen = []
    monkeypatch.setattr(work, "_do", lambda *_: seen.append(json.loads(task.mark.read_text())))
    outcome = work.perform(task)
    assert isinstance(outcome, Outcome)
    assert (outcome.state, outcome.status) == ("done", 0)
    assert seen[0]["pid"] == os.getpid()
    assert not task.mark.exists()
