"""Sweeps on a real SLURM of one node with two GPUs: jobs are warned, killed, preempted, and left by their command."""

import itertools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

import kd
from kd.errors import ConfigError, StoreError
from kd.sweep.plan import read_arguments
from kd.sweep.slurm import SlurmLauncher, jobs, launcher, queue
from kd.sweep.slurm.jobs import Request, Shape, SubmissionError
from kd.sweep.task import DONE, FAILED, Outcome, Task
from tests.commands import Command
from tests.sweep import cluster, light
from tests.sweep.cluster import slurm, until
from tests.sweep.light import attempts, light_task

submitit = pytest.importorskip("submitit.slurm.slurm", reason="submitit is not installed")
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_cluster")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    if reason := cluster.missing():
        pytest.skip(reason)
    with cluster.started(tmp_path_factory.mktemp("slurm")):
        yield


@pytest.fixture
def start(node, tmp_path, monkeypatch) -> Callable[..., SlurmLauncher]:
    """Start launchers for the sweep in `tmp_path` whose jobs do light work."""
    monkeypatch.setattr(jobs, "perform", light.work)
    monkeypatch.setattr(launcher, "LAG_S", 1.0)
    return lambda **options: SlurmLauncher(folder=tmp_path, **{"poll_s": 0.5, "timeout_min": 10, **options})


def ids(folder: Path) -> dict[str, str]:
    """The job of each task, by the task's name."""
    recorded = json.loads((folder / "slurm" / "jobs.json").read_text())["jobs"]
    return {key.split()[-1]: job for key, job in recorded.items()}


def run(started: SlurmLauncher, tasks: list[Task], meanwhile: Callable[[], None] = lambda: None) -> dict[str, Outcome]:
    """Do tasks while something happens to them."""
    other = threading.Thread(target=meanwhile)
    other.start()
    outcomes = {outcome.task.name: outcome for outcome in started.run(tasks)}
    other.join()
    assert set(outcomes) == {task.name for task in tasks}
    return outcomes


def warn(job: str) -> None:
    """What SLURM does before a job's time is over. scancel waits for an answer that a requeued job does not give."""
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", "--signal=USR2", job], timeout=3)


@pytest.mark.slurm
def test_each_job_has_one_gpu_that_no_other_has_at_the_same_time(start, tmp_path):
    tasks = [light_task(tmp_path, f"t{number}") for number in range(4)]
    outcomes = run(start(cpus_per_job=2), tasks)
    assert {outcome.state for outcome in outcomes.values()} == {DONE}
    assert outcomes["t0"].task is tasks[0]
    notes = sorted((attempts(task)[0] for task in tasks), key=lambda note: note["start"])
    assert {note["CUDA_VISIBLE_DEVICES"] for note in notes} == {"0", "1"}
    for number, first in enumerate(notes):
        for second in notes[number + 1 :]:
            together = second["start"] < first["end"]
            assert not (together and first["CUDA_VISIBLE_DEVICES"] == second["CUDA_VISIBLE_DEVICES"])
    assert any(second["start"] < first["end"] for first, second in itertools.pairwise(notes))
    assert {(note["OMP_NUM_THREADS"], note["kd"]) for note in notes} == {("2", kd.__file__)}


@pytest.mark.slurm
def test_a_killed_or_cancelled_job_fails_alone_and_a_warned_one_is_requeued_once(start, tmp_path):
    killed, cancelled = (light_task(tmp_path, name, attempt=2) for name in ("killed", "cancelled"))
    warned = light_task(tmp_path, "warned", attempt=2, fork=True)  # SLURM warns its data worker too
    good = light_task(tmp_path, "good")

    def meanwhile() -> None:
        until(lambda: all(attempts(task) and attempts(task)[0] for task in (killed, cancelled, warned)))
        os.kill(attempts(killed)[0]["pid"], signal.SIGKILL)
        slurm("scancel", ids(tmp_path)["cancelled"])
        warn(ids(tmp_path)["warned"])

    outcomes = run(start(gpus_per_job=0), [killed, cancelled, warned, good], meanwhile)
    assert outcomes["good"].state == DONE
    assert [outcomes[name].state for name in ("killed", "cancelled")] == [FAILED, FAILED]
    assert "FAILED, killed by signal 9" in outcomes["killed"].error
    assert "CANCELLED" in outcomes["cancelled"].error
    assert str(killed.folder / "log.txt") in outcomes["killed"].error
    assert not killed.mark.exists()
    assert outcomes["warned"].state == DONE
    assert len(attempts(warned)) == 2
    log = tmp_path / "slurm" / f"{ids(tmp_path)['warned']}_0_log"
    assert log.with_suffix(".out").read_text().count("Requeued job") == 1
    assert log.with_suffix(".err").read_text().count("Caught signal") == 1


@pytest.mark.slurm
def test_a_job_that_slurm_preempts_is_done_again(start, tmp_path):
    task = light_task(tmp_path, "preempted", attempt=2)

    def meanwhile() -> None:
        until(lambda: attempts(task))
        slurm("sbatch", "--partition=urgent", f"--gpus={cluster.GPUS}", f"--output={tmp_path}/urgent", "--wrap=sleep 1")

    assert run(start(partition="gpu"), [task], meanwhile)["preempted"].state == DONE
    assert len(attempts(task)) == 2
    assert (tmp_path / "urgent").is_file()


@pytest.mark.slurm
def test_jobs_of_an_earlier_command_are_adopted_and_orphans_cancelled(start, tmp_path, capsys):
    # all but the first are still at work when the second command looks, on a busy machine too
    tasks = [light_task(tmp_path, f"t{number}", seconds=8 if number else 0.5) for number in range(4)]
    first = start()
    outcomes = first.run(tasks)
    ended = next(outcomes).task
    outcomes.close()
    first.close()
    assert (
        f"3 jobs stay with SLURM. The same command goes on with them; `scancel --user=$USER --name={first.name}`"
        in (capsys.readouterr().err)
    )
    before = ids(tmp_path)
    orphan = ("--job-name", first.name, "--gpus=1", f"--output={tmp_path}/orphan", "--wrap=sleep 60")
    orphan_id = slurm("sbatch", "--parsable", *orphan).strip()
    left = [task for task in tasks if task is not ended]
    assert {outcome.state for outcome in run(start(), left).values()} == {DONE}
    assert "3 jobs were submitted by an earlier command" in capsys.readouterr().err
    assert ids(tmp_path) == before
    assert [len(attempts(task)) for task in tasks] == [1, 1, 1, 1]
    assert queue.described(orphan_id)[0].startswith("CANCELLED")


@pytest.mark.slurm
def test_no_more_jobs_are_queued_than_asked_for_and_refused_ones_wait(start, tmp_path, monkeypatch, capsys):
    ended, pulled, refusals = [], [], ["QOSMaxSubmitJobPerUserLimit"]
    submit = jobs.Jobs.submit

    def tasks():
        for number in range(3):
            pulled.append(len(ended))
            yield light_task(tmp_path, f"t{number}", seconds=3 if number == 1 else 0.5)

    def limited(self, chunk, *arguments):
        if len(pulled) == 3 and refusals:
            raise SubmissionError(refusals.pop())
        return submit(self, chunk, *arguments)

    monkeypatch.setattr(jobs.Jobs, "submit", limited)
    for outcome in start(max_jobs=2, gpus_per_job=0).run(tasks()):
        ended.append(outcome.task.name)
    assert ended == ["t0", "t1", "t2"]
    assert pulled == [0, 0, 1]
    assert "SLURM takes no more jobs for now: QOSMaxSubmitJobPerUserLimit" in capsys.readouterr().err


@pytest.mark.slurm
def test_a_data_parallel_run_gets_a_process_per_device_and_ends_with_any_of_them(start, tmp_path):
    parallel = {"strategy": "ddp", "devices": 2, "num_nodes": 1}
    good = light_task(tmp_path, "good", trainer=parallel)
    broken = light_task(tmp_path, "broken", trainer=parallel, attempt=2)
    second = broken.folder / "attempt-1-1.json"

    def meanwhile() -> None:
        until(lambda: second.is_file() and second.read_text())
        os.kill(json.loads(second.read_text())["pid"], signal.SIGKILL)

    outcomes = run(start(), [good, broken], meanwhile)
    assert outcomes["good"].state == DONE
    (note,) = attempts(good)
    assert (note["SLURM_NTASKS"], note["CUDA_VISIBLE_DEVICES"]) == ("2", "0,1")
    assert outcomes["broken"].state == FAILED


@pytest.mark.slurm
def test_what_slurm_cannot_do_is_said_before_anything_is_submitted(start, tmp_path):
    with pytest.raises(ConfigError, match=r"hydra.launcher.partition=gpus is unknown to SLURM. Did you mean 'gpu'\?"):
        start(partition="gpus")
    with pytest.raises(ConfigError, match=r"SLURM refuses the sweep's jobs: .*[Ii]nvalid feature"):
        list(start(constraint="nothing-has-this").run([light_task(tmp_path, "never")]))
    last = start()
    with pytest.raises(ConfigError, match=r"trainer\.devices=auto does not say how many GPUs"):
        list(last.run([light_task(tmp_path, "never", trainer={"strategy": "ddp", "devices": "auto"})]))
    # by name: a job of the test before leaves its outcome a moment before SLURM calls it ended
    assert not slurm("squeue", "--noheader", "--states=all", f"--name={last.name}")


@pytest.mark.slurm
def test_a_sweep_survives_its_command_and_a_requeue_continues_at_the_very_step(node, tmp_path, monkeypatch, capsys):
    # epochs of 80 steps, so that a warning nearly always comes within one
    small = ("data.train_limit=320", "data.batch_size=4", "trainer.max_epochs=12", "trainer.threads=1")
    training, run = (*small, "logger=csv", "latency=false"), Command(tmp_path, monkeypatch, capsys)
    assert run(*training).status == 0  # teacher and baseline are in the store now
    shutil.copytree(tmp_path / "outputs" / "store", tmp_path / "store")
    where = ("hydra/launcher=slurm", "hydra.launcher.timeout_min=10", "hydra.launcher.poll_s=1")
    command = [sys.executable, "-m", "kd.run", "-m", *training, "method.temperature=2,8", *where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def trained() -> list[Path]:
        return sorted(tmp_path.glob("outputs/digits_kd/sweep-*/temperature-*/checkpoints/*.ckpt"))

    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as first:
        try:
            until(trained, 300)
            run_folder, sweep = trained()[0].parents[1], trained()[0].parents[2]
            before = ids(sweep)
            warn(before[run_folder.name])
        finally:
            first.kill()
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "submitted by an earlier command" in again.stderr
    assert ids(sweep) == before
    assert re.search(r"continuing after epoch \d+ of 12", (run_folder / "log.txt").read_text())
    temperature = re.search(r"temperature-(\d)", run_folder.name)[1]
    alone = run(*training, f"method.temperature={temperature}", "store.root=store", "hydra.run.dir=alone")
    assert alone.status == 0, alone.err
    weights = [load_file(folder / "student.safetensors") for folder in (run_folder, tmp_path / "alone")]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    content = json.loads((sweep / "sweep.json").read_text())
    assert [job["state"] for job in content["jobs"]] == ["done", "done"]
    assert len(list(sweep.glob("*/result.json"))) == 2


@pytest.mark.parametrize(
    "written",
    [
        '{"state": "done"',
        "[]",
        '"done"',
        '{"state": "done"}',
        json.dumps({"state": "gone", "status": 0, "error": "", "where": "", "seconds": 1.0, "said": ""}),
        json.dumps({"state": "done", "status": 0, "error": [], "where": "", "seconds": 1.0, "said": ""}),
    ],
)
def test_a_damaged_outcome_fails_its_job_alone(tmp_path, written):
    (tmp_path / "3_0_0_result.json").write_text(written)
    task = light_task(tmp_path, "job")
    found = jobs.Jobs(tmp_path, "name", Request()).outcome("3_0", task)
    assert (found.task, found.state) == (task, FAILED)
    assert "SLURM job 3_0 has left an outcome that cannot be read" in found.error


@pytest.mark.parametrize("written", ["", "[]", "{}", '{"jobs": []}', '{"jobs": {"a": 1}}'])
def test_a_damaged_record_of_jobs_is_one_message(tmp_path, written):
    one = object.__new__(SlurmLauncher)  # made without asking SLURM
    one._record = tmp_path / "jobs.json"
    assert one._read() == {}
    one._record.write_text(written)
    with pytest.raises(StoreError, match=r"jobs\.json is damaged .* Delete it"):
        one._read()


def test_no_pickle_of_a_sweeps_folder_is_read(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "3_0_0_result.pkl").write_bytes(pickle.dumps(("success", Hostile())))
    found = jobs.Jobs(tmp_path, "name", Request())
    assert not found.ended("3_0")
    (tmp_path / "3_0_0_result.json").write_text("{}")
    assert found.outcome("3_0", light_task(tmp_path, "job")).state == FAILED
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_min": 3}, r"timeout_min=3 leaves no time .* signal_delay_s=120 seconds .* Give at least 4\."),
        ({"timeout_min": 3, "signal_delay_s": 125}, r"Give at least 4\."),
        ({"gpus_per_job": -1}, r"`hydra.launcher.gpus_per_job` to be a whole number of at least 0, but got -1"),
        ({"mem_gb": 0}, r"`hydra.launcher.mem_gb` to be a number above 0, but got 0"),
        ({"setup": "module load cuda"}, r"`hydra.launcher.setup` to be a list of lines of shell"),
        *(
            ({key: "a\ntouch pwned #"}, rf"`hydra.launcher.{key}` to have no line breaks, but got 'a\\ntouch pwned #'")
            for key in ("partition", "account", "qos", "constraint", "exclude")
        ),
        ({"additional_parameters": {"wckey": "a\ntouch pwned #"}}, "`hydra.launcher.additional_parameters` to have no"),
        ({"additional_parameters": {"a\ntouch pwned #": 1}}, "`hydra.launcher.additional_parameters` to have no"),
    ],
)
def test_a_request_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Request(**options)


def test_a_launcher_that_cannot_be_made_is_one_message(tmp_path, monkeypatch, capsys):
    done = Command(tmp_path, monkeypatch, capsys)(
        "-m", "hydra/launcher=slurm", "hydra.launcher.timeout_min=2", "seed=0,1"
    )
    assert done.status == 2
    assert done.err.startswith("Error: hydra.launcher.timeout_min=2 leaves no time to train")
    assert not list(tmp_path.iterdir())


def test_settings_of_the_command_line_reach_the_script_that_is_submitted():
    given = ("setup=[module load cuda]", "additional_parameters={mail-type: FAIL}", "partition=gpu", "mem_gb=1.5")
    words = ["hydra/launcher=slurm", *(f"hydra.launcher.{setting}" for setting in given), "seed=0,1"]
    node = OmegaConf.to_container(read_arguments(words).hydra.launcher)
    request = Request(**{field.name: node[field.name] for field in fields(Request)})
    script = submitit._make_sbatch_string("work", "folder", **request.parameters("name", Shape(2, 4), parallel=8))
    for line in ("mail-type=FAIL", "requeue", "partition=gpu", "mem=1536M", "time=240", "signal=USR2@120", "nodes=2"):
        assert f"#SBATCH --{line}\n" in script
    for line in ("ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=1"):
        assert f"#SBATCH --{line}\n" in script
    assert "\nmodule load cuda\n" in script
    assert "--kill-on-bad-exit=1 --wait=60" in script  # else a process would hold its GPU after another has ended


def test_missing_software_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on PATH"):
        SlurmLauncher(folder=tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install submitit"):
        SlurmLauncher(folder=tmp_path)


def test_a_partition_without_gpus_is_refused_unless_none_are_asked_for(monkeypatch):
    monkeypatch.setattr(queue, "answer", lambda *_: "cpu*|(null)\ngpu|gpu:a100:8\n")
    with pytest.raises(ConfigError, match=r"The partition cpu has no GPUs.*hydra.launcher.gpus_per_job=0"):
        queue.check_partition(None, gpus=True)
    queue.check_partition(None, gpus=False)
    queue.check_partition("gpu,cpu", gpus=True)


def test_a_job_that_scontrol_has_forgotten_is_asked_of_sacct(monkeypatch):
    answers = {"scontrol": None, "sacct": "OUT_OF_MEMORY|0:125|node7\n"}
    monkeypatch.setattr(queue, "answer", lambda command, *_: answers[command])
    assert queue.described("5_0") == ("OUT_OF_MEMORY, killed by signal 125", "node7")
    answers["sacct"] = None
    assert queue.described("5_0") == ("no longer known to SLURM", "")
