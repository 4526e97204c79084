"""The main job, on real data: one command trains, evaluates and leaves a result that can be trusted."""

import csv
import json
import os
from pathlib import Path

import lightning as L
import pytest
import yaml
from safetensors.torch import load_file

from kd import folder as folders
from kd.locks import owned
from tests.commands import QUICK, SMALL_CNNS, Command

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command(tmp_path, monkeypatch, capsys)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one / "student.safetensors"), load_file(other / "student.safetensors")
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def stems(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


def test_a_run_leaves_everything_that_the_contract_names(command):
    folder = command.quick()
    assert folder.parent == command.folder / "outputs" / "digits_kd"
    found = result(folder)
    assert found["schema"] == 1
    assert found["status"] == "done"
    assert found["data"]["train"] == 192
    assert found["data"]["test"] == 397
    assert set(found["arms"]) == {"teacher", "baseline", "student"}
    for name, arm in found["arms"].items():
        test = arm["test"]
        assert test["n"] == 397
        assert test["errors"] == 397 - sum(test["confusion"][i][i] for i in range(10))
        assert test["accuracy"] == pytest.approx(1 - test["errors"] / 397)
        assert (test["agreement_with_teacher"] is None) == (name == "teacher")
        assert (command.folder / "outputs" / "store" / arm["store_key"] / "weights.safetensors").is_file()
        assert arm["epochs"] == 2
        assert 1 <= arm["selected_epoch"] <= 2
    assert load_file(folder / "student.safetensors")["fc.weight"].shape[0] == 10
    assert (folder / "report.html").is_file()
    assert (folder / "checkpoints").is_dir()
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"arm", "epoch", "step", "name", "value"}
    assert {row["arm"] for row in rows} == {"teacher", "baseline", "student"}
    trained = {row["name"] for row in rows if row["arm"] == "student"}
    assert {"train/loss", "train/ce", "train/kd", "train/lr", "val/accuracy", "val/nll", "test/accuracy"} <= trained


def test_latency_is_measured_unless_it_is_not_wanted_and_names_no_other_run(command):
    quick = [one for one in QUICK if not one.startswith("latency")]
    assert command(*quick).status == 0
    folder = next(command.folder.glob("outputs/*/*/result.json")).parent
    measured = result(folder)["arms"]["student"]["latency_ms"]
    assert measured["1"] > 0 and measured["256"] > 0 and measured["threads"] == 1
    again = command(*QUICK)
    assert "was finished before" in again.out
    other = command.quick("seed=1")
    assert result(other)["arms"]["student"]["latency_ms"] is None
    assert "latency" not in other.name


def test_the_same_command_again_trains_nothing(command, monkeypatch):
    folder = command.quick()
    before = (folder / "result.json").read_bytes()
    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("trained again"))
    done = command(*QUICK)
    assert done.status == 0
    assert "finished before" in done.out
    assert (folder / "result.json").read_bytes() == before


def test_force_trains_in_a_folder_of_its_own(command):
    first = command.quick()
    done = command(*QUICK, "force=true")
    assert done.status == 0, done.err
    forced = first.with_name(f"{first.name}-2")
    assert f"page: {forced.relative_to(command.folder)}" in done.out
    for arm in ("teacher", "baseline", "student"):
        assert f"{arm}  training" in done.out
    assert "found in" not in done.out
    assert f"force=true: trained anew, into {forced.relative_to(command.folder)}/store" in done.out
    assert same_weights(first, forced)
    assert (first / "result.json").is_file()


def test_a_run_that_another_process_finishes_meanwhile_is_shown(command, monkeypatch):
    folder = command.quick()
    before = (folder / "result.json").read_bytes()
    monkeypatch.setattr("kd.folder.finished", late(folders.finished))
    done = command(*QUICK)
    assert done.status == 0, done.err
    assert "Another process has just finished this run." in done.out and "test accuracy" in done.out
    assert (folder / "result.json").read_bytes() == before


def late(finished):
    """What is there is seen at the second look."""
    looks = []
    return lambda *given: looks.append(1) or (finished(*given) if len(looks) > 1 else None)


def test_another_seed_or_temperature_reuses_the_teacher(command):
    runs = [result(command.quick(*change)) for change in ((), ("seed=1",), ("method.temperature=2",))]
    keys = [{name: arm["store_key"] for name, arm in run["arms"].items()} for run in runs]
    assert len({key["teacher"] for key in keys}) == 1
    assert keys[0]["baseline"] == keys[2]["baseline"] != keys[1]["baseline"]
    assert len({key["student"] for key in keys}) == 3


def test_the_saved_configuration_is_the_same_run(command):
    folder = command.quick("method.temperature=3")
    done = command("--config-dir", str(folder), "--config-name", "config")
    assert done.status == 0, done.err
    assert "finished before" in done.out
    assert yaml.safe_load((folder / "config.yaml").read_text())["method"]["temperature"] == 3


def test_the_same_seed_gives_bit_equal_weights(command):
    one = command.quick("store.root=one", "data.augment=shift", "student.dropout=0.2")
    other = command.quick("store.root=other", "force=true", "data.augment=shift", "student.dropout=0.2")
    assert one != other
    assert same_weights(one, other)
    a, b = result(one), result(other)
    assert a["arms"]["student"]["test"] == b["arms"]["student"]["test"]


def test_without_validation_the_last_epoch_stands(command):
    student = result(command.quick("data.val=0"))["arms"]["student"]
    assert student["val"] is None
    assert student["selected_epoch"] == student["epochs"] == 2


def test_the_selected_epoch_is_the_best_on_validation(command):
    folder = command.quick("trainer.max_epochs=6")
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "baseline"]
    accuracy = {int(row["epoch"]): float(row["value"]) for row in rows if row["name"] == "val/accuracy"}
    nll = {int(row["epoch"]): float(row["value"]) for row in rows if row["name"] == "val/nll"}
    best = max(accuracy, key=lambda epoch: (round(accuracy[epoch], 6), -nll[epoch]))
    baseline = result(folder)["arms"]["baseline"]
    assert baseline["selected_epoch"] == best + 1
    assert baseline["val"]["accuracy"] == pytest.approx(accuracy[best])


@pytest.mark.parametrize(
    ("teacher", "arms"),
    [
        (["teacher=self"], 3),
        (["teacher=self", "teacher.generations=2"], 3),
        (["teacher=ensemble", "teacher.size=2"], 3),
        (["teacher=ema", "teacher.decay=0.9"], 3),
        (["teacher=virtual"], 2),
        (["teacher=none", "method=hard"], 2),
        (["model@student=mlp_400", "model@teacher.model=mlp_16"], 3),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_every_kind_of_teacher(command, teacher, arms):
    found = result(command.quick(*teacher))
    assert len(found["arms"]) == arms
    if "teacher=self" in teacher:
        assert found["arms"]["teacher"]["model"] == found["arms"]["student"]["model"]
        assert found["arms"]["teacher"]["store_key"] != found["arms"]["baseline"]["store_key"]
    if "teacher=ensemble" in teacher:
        assert found["arms"]["teacher"]["params"] == 2 * 190_410
    if "method=hard" in teacher:
        assert found["arms"]["student"]["store_key"] == found["arms"]["baseline"]["store_key"]


def test_each_generation_learns_from_the_one_before(command):
    done = command(*QUICK, "teacher=self", "teacher.generations=3")
    assert done.status == 0, done.err
    lines = [line for line in done.out.splitlines() if "training 2 epochs" in line]
    assert [line.split()[0] for line in lines] == ["teacher", "teacher-2", "teacher-3", "baseline", "student"]
    assert ["KL" in line for line in lines] == [False, True, True, False, True]


def test_a_delivered_student_can_be_the_next_teacher(command):
    first = command.quick()
    weights = first / "student.safetensors"
    found = result(command.quick("teacher=checkpoint", f"teacher.path={weights}", "model@teacher.model=mlp_16"))
    assert found["arms"]["teacher"]["test"] == {
        **result(first)["arms"]["student"]["test"],
        "agreement_with_teacher": None,
        "kl_to_teacher": None,
        "teacher_mistakes": None,
        "agreement_on_teacher_mistakes": None,
    }
    assert found["arms"]["teacher"]["train_s"] is None


@pytest.mark.parametrize("method", stems("method"))
def test_every_method_runs(command, method):
    student = result(command.quick(f"method={method}", *(SMALL_CNNS[:1] if method == "tf_self" else SMALL_CNNS)))[
        "arms"
    ]["student"]
    assert 0 < student["test"]["nll"] < 100


@pytest.mark.parametrize(
    ("method", "temperature", "alpha"), [("kd", 4, 0.5), ("tf_virtual", 20, 0.1), ("hard", None, None)]
)
def test_an_experiment_sets_temperature_and_alpha_of_its_own_method_only(command, method, temperature, alpha):
    found = result(command.quick(f"method={method}", "trainer.max_epochs=1"))["method"]
    assert (found["temperature"], found["alpha"]) == (temperature, alpha)


@pytest.mark.parametrize("experiment", stems("experiment"))
def test_every_experiment_runs(command, experiment, request):
    if not experiment.startswith("digits"):
        command.monkeypatch.setenv("KD_DATA_DIR", str(request.getfixturevalue("real_data")))
    done = command(f"experiment={experiment}", "debug=smoke")
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    assert done.err == ""
    claim = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text()).get("claim")
    assert ("published" in done.out) == (claim is not None)


@pytest.mark.parametrize("optim", stems("optim"))
def test_every_optimiser_runs(command, optim):
    folder = command.quick(f"optim={optim}", "trainer.gradient_clip_val=1.0")
    assert result(folder)["status"] == "done"


@pytest.mark.parametrize("schedule", stems("optim/schedule"))
def test_every_schedule_runs(command, schedule):
    assert result(command.quick(f"optim/schedule={schedule}"))["status"] == "done"


def test_omission_hides_the_class_from_baseline_and_student_alone(command):
    found = result(command.quick("data.omit=[3]", "trainer.max_epochs=8", "data.train_limit=1000"))
    assert found["data"]["omitted"] == [3]
    assert found["data"]["omitted_from"] == ["baseline", "student"]
    assert found["data"]["test"] == 397
    accuracy = {name: arm["test"]["per_class_accuracy"][3] for name, arm in found["arms"].items()}
    assert accuracy["teacher"] > 0.5
    assert accuracy["baseline"] == 0


def test_a_sweep_has_one_folder_with_a_job_each(command):
    done = command(*QUICK, "-m", "method.temperature=2,4")
    assert done.status == 0, done.err
    sweeps = list((command.folder / "outputs" / "digits_kd").glob("sweep-*"))
    assert len(sweeps) == 1
    jobs = sorted(path.parent for path in sweeps[0].glob("*/result.json"))
    assert [result(job)["method"]["temperature"] for job in jobs] == [2, 4]
    assert all("temperature-" in job.name for job in jobs)


def test_a_given_folder_is_used_as_it_is(command):
    folder = command.quick("hydra.run.dir=here/mine")
    assert folder == command.folder / "here" / "mine"
    done = command(*QUICK, "hydra.run.dir=here/mine", "seed=1")
    assert done.status == 2
    assert "another configuration" in done.err


def test_two_runs_in_one_folder_are_refused_with_the_owner(command):
    with owned(command.folder / "mine"):
        done = command(*QUICK, "hydra.run.dir=mine")
    assert done.status == 2
    assert f"in use by process {os.getpid()} on " in done.err
    assert not (command.folder / "mine" / "config.yaml").exists()
    assert command(*QUICK, "hydra.run.dir=mine").status == 0
