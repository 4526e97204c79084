"""`sweep=together`: who is trained with whom, and that the results are those of the same sweep without it."""

import json
import signal
from pathlib import Path

import pytest

from kd import build
from kd.locks import owned
from kd.recipe import plan
from kd.schema import restored
from kd.store import Store
from kd.sweep.networks import Plans
from kd.sweep.plan import Composer, grid, read_arguments
from kd.sweep.record import read_sweep
from kd.sweep.together import MOST, groups
from tests.commands import QUICK, Command, started, wait_for

SWEEP = ("-m", *QUICK, "method.temperature=2,4", "method.alpha=0.1,0.9", "seed=0,1")
#: in result.json, what two runs with the same weights may say differently
TIMES = ("wall_s", "train_s", "images_per_s")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command(tmp_path, monkeypatch, capsys)


def sorted_into_groups(tmp_path, monkeypatch, *given):
    """The names of the jobs in each group, and those outside of groups by reason."""
    monkeypatch.chdir(tmp_path)
    arguments = read_arguments(
        ["-m", "trainer.max_epochs=2", "logger=csv", *([] if "teacher=" in str(given) else ["teacher=random"]), *given]
    )
    jobs = Composer(arguments).jobs(grid(arguments))
    found = groups(Plans(), jobs, arguments.folder, "sweep")
    assert found.students == sum(len(task.students) for task in found.tasks)
    return found.tasks, {reason: [job.words for job in apart] for reason, apart in found.apart.items()}


def without_times(content):
    """A result without the times, and without the order of what was trained when."""
    if isinstance(content, dict):
        return {name: without_times(value) for name, value in content.items() if name not in TIMES}
    return content


def results(folder: Path):
    found = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    return {name: without_times(content) for name, content in found.items()}


def test_results_are_those_of_the_separate_sweep(command):
    separate = command(*SWEEP, "store.root=one", "hydra.sweep.dir=separate")
    together = command(*SWEEP, "store.root=two", "hydra.sweep.dir=together", "sweep=looped")
    assert separate.status == together.status == 0, together.err
    expected, found = results(command.folder / "separate"), results(command.folder / "together")
    assert len(found) == 8
    assert found == expected
    for log in (command.folder / "together").glob("*/log.txt"):
        assert "student  found in" in log.read_text()
    assert "8 students are trained in 2 groups first" in together.out
    assert together.out.count("4 of 4 students are in the store; looped, one teacher forward for all") == 2
    content = read_sweep(command.folder / "together")
    assert content["counts"] == {"done": 8}
    for job in (command.folder / "together").glob("*/metrics.csv"):
        assert job.read_text() == (command.folder / "separate" / job.parent.name / "metrics.csv").read_text()
    times = [json.loads(path.read_text())["arms"]["student"] for path in command.folder.glob("together/*/result.json")]
    assert all(arm["train_s"] > 0 and arm["images_per_s"] > 0 for arm in times)


def test_the_same_command_without_it_finds_the_same_sweep_finished(command):
    assert command(*SWEEP, "sweep=together").status == 0
    again = command(*SWEEP)
    assert "8 jobs, 8 of them finished before" in again.out
    assert "trained first" not in again.out


def test_a_group_is_what_shares_seed_data_and_teacher_whatever_the_method(tmp_path, monkeypatch):
    tasks, apart = sorted_into_groups(tmp_path, monkeypatch, "method=kd,dkd", "seed=0,1", "data.batch_size=32,64")
    assert not apart
    assert len(tasks) == len({task.folder for task in tasks}) == 4
    for task in tasks:
        assert [one["method"]["name"] for one in task.students] == ["kd", "dkd"]
        assert len({(one["seed"], one["data"]["batch_size"]) for one in task.students}) == 1


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (("teacher=virtual", "optim.optimizer.lr=0.1,0.2"), [2]),  # the same teacher, whatever the optimiser
        (("teacher=trained", "optim.optimizer.lr=0.1,0.2", "method.alpha=0.1,0.9"), [2, 2]),  # which it is trained by
        (("student.hidden=[5],[6]", "method.alpha=0.1,0.9"), [2, 2]),
        (("trainer.gradient_clip_val=1,2", "teacher=virtual", "method.alpha=0.1,0.9"), [2, 2]),
    ],
)
def test_what_a_group_may_differ_in(tmp_path, monkeypatch, given, sizes):
    tasks, apart = sorted_into_groups(tmp_path, monkeypatch, *given)
    assert [len(task.students) for task in tasks] == sizes
    assert not apart


def test_a_large_group_is_divided(tmp_path, monkeypatch):
    temperatures = ",".join(str(number) for number in range(1, 2 * MOST + 2))
    tasks, apart = sorted_into_groups(tmp_path, monkeypatch, f"method.temperature={temperatures}")
    assert not apart
    assert [len(task.students) for task in tasks] == [22, 22, 21]
    assert MOST == 32


@pytest.mark.parametrize("left", [15, 1])
def test_a_divided_group_that_was_cut_off_is_found_again(tmp_path, monkeypatch, left):
    """With its checkpoint, though the other groups, and some of its own students, are in the store."""
    given = f"method.temperature={','.join(str(number) for number in range(1, MOST + 9))}"
    before, _ = sorted_into_groups(tmp_path, monkeypatch, given)
    assert [len(task.students) for task in before] == [20, 20]
    cut = before[1]
    checkpoint = cut.folder / "checkpoints" / "together.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    configs = [restored(student) for student in cut.students[:left]]
    missing = {plan(config, build.data(config)).student.key for config in configs}
    monkeypatch.setattr(Store, "get", lambda _, key: None if key in missing else "an entry")
    (again,), apart = sorted_into_groups(tmp_path, monkeypatch, given)
    assert not apart
    assert (again.name, again.folder) == (cut.name, cut.folder)
    assert again.students == cut.students[:left]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("teacher=ema",), "the average of the student itself"),
        (("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"), "several processes"),
        (("trainer.compile=on",), "one function"),
        (("trainer.precision=16-mixed", "optim.optimizer.fused=false"), "16-mixed"),
        (("data=custom", "data._target_=tests.data.test_foreign_data.Named"), "are its own"),
    ],
)
def test_students_that_cannot_be_trained_together_are_named_with_the_reason(tmp_path, monkeypatch, given, reason):
    tasks, apart = sorted_into_groups(tmp_path, monkeypatch, "method.temperature=2,4", *given)
    assert not tasks
    ((why, jobs),) = apart.items()
    assert reason in why
    assert jobs == ["temperature=2", "temperature=4"]


def test_a_student_that_shares_with_no_other_is_trained_by_its_job(command):
    done = command(
        "-m", *QUICK, "method.temperature=2,4", "data.batch_size=32,64", "sweep=together", "method.alpha=0.5"
    )
    assert done.status == 0, done.err
    assert "4 students are trained in 2 groups first" in done.out
    done = command("-m", *QUICK, "seed=2,3", "sweep=together")
    assert "2 students are trained by their jobs (seed=2; seed=3): no other student has the same data" in done.out
    assert done.status == 0


def test_a_student_that_breaks_fails_in_its_own_job_alone(command):
    grid = ("method.terms.kd.weight=1.0,1e38", "method.alpha=null", "method.beta=1", "seed=0")
    done = command("-m", *QUICK, *grid, "method.temperature=2,4", "sweep=stacked")
    assert done.status == 6
    states = {job["name"]: job for job in read_sweep(next(command.folder.glob("outputs/*/sweep-*")))["jobs"]}
    assert sorted(job["state"] for job in states.values()) == ["done", "done", "failed", "failed"]
    failed = [job for job in states.values() if job["state"] == "failed"]
    assert all(job["error"]["status"] == 5 and "became NaN or infinite" in job["error"]["message"] for job in failed)
    assert "2 of 4 students are in the store" in done.out
    assert done.out.count("left to its job: ") == 2


def test_a_damaged_network_in_the_store_stops_no_other(command):
    given = ("-m", *QUICK, "method.temperature=2,4,8")
    assert command(*given, "hydra.sweep.dir=before").status == 0
    result = next(command.folder.glob("before/temperature-2-*/result.json"))
    key = json.loads(result.read_text())["arms"]["student"]["store_key"]
    (command.folder / "outputs" / "store" / key / "meta.json").write_text("{")
    done = command(*given, "sweep=together")
    assert done.status == 6
    assert "1 student is trained by its job (temperature=2): outputs/store/" in done.out
    assert "it cannot be read (JSONDecodeError" in done.out
    assert sorted(job["state"] for job in read_sweep(next(command.folder.glob("outputs/*/sweep-*")))["jobs"]) == [
        "done", "done", "failed",
    ]  # fmt: skip


def test_a_group_that_another_process_is_at_is_left_to_it(command):
    given = ("-m", *QUICK, "method.temperature=2,4", "sweep=together")
    arguments = read_arguments(given)
    (group,) = groups(Plans(), Composer(arguments).jobs(grid(arguments)), arguments.folder, "sweep").tasks
    with owned(group.folder):
        done = command(*given)
        assert not list(group.folder.glob("checkpoints/*"))
    assert f"{group.name}  elsewhere in" in done.out and "is in use by process" in done.out
    assert done.status == 0, done.err
    assert read_sweep(arguments.folder)["counts"] == {"done": 2}  # by the jobs: no student was locked


def test_a_group_that_fails_leaves_its_students_to_their_jobs(command, monkeypatch):
    from kd.lockstep import train

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "train_together", full)
    done = command(*SWEEP, "sweep=together")
    assert done.status == 0, done.err
    assert done.out.count("the students of this group are trained by their jobs") == 2
    assert "No space left on device" in done.out
    assert read_sweep(next(command.folder.glob("outputs/*/sweep-*")))["counts"] == {"done": 8}


def test_what_is_asked_for_in_the_wrong_place_or_word_is_refused(command):
    single = command(*QUICK, "sweep=together")
    assert single.status == 2 and "sweep=together belongs to a sweep: add -m" in single.err
    word = command(*SWEEP, "sweep=togehter")
    assert word.status == 2 and "Did you mean 'together'?" in word.err
    swept = command(*SWEEP, "sweep=together,separate")
    assert swept.status == 2 and "decides no result" in swept.err


@pytest.mark.parametrize(("sign", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_group_that_is_ended_continues_and_ends_with_the_same_weights(tmp_path, monkeypatch, capsys, sign, status):
    given = ("-m", "data.train_limit=640", "trainer.max_epochs=15", "logger=csv", "latency=false",
             "method.temperature=2,4", "method.alpha=0.1,0.9", "teacher=random", "sweep=stacked")  # fmt: skip
    process = started(tmp_path, *given)
    wait_for(process, lambda: list(tmp_path.glob("outputs/*/sweep-*/networks/*/checkpoints/together.ckpt")))
    process.send_signal(sign)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("outputs/*/sweep-*/*/result.json"))
    command = Command(tmp_path, monkeypatch, capsys)
    done = command(*given)
    assert done.status == 0, done.err
    (log,) = tmp_path.glob("outputs/*/sweep-*/networks/together-*/log.txt")
    assert "continuing after epoch" in log.read_text()
    assert command(*given, "store.root=other", "hydra.sweep.dir=other").status == 0
    (sweep,) = tmp_path.glob("outputs/*/sweep-*")
    assert results(sweep) == results(tmp_path / "other")
    assert len(results(sweep)) == 4
