"""Methods that do more than add a term: stages, memories, other networks, weights that change over the epochs."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kd import method_config
from kd.callbacks import SaveEpoch
from kd.losses.schedule import weight_schedule
from tests.commands import QUICK, SMALL_CNNS, Command

METHODS = sorted(path.stem for path in Path(__file__).parents[1].glob("conf/method/*.yaml"))
TWO_STAGES = [name for name in METHODS if "initial" in method_config(name)]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command(tmp_path, monkeypatch, capsys)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def curve(folder: Path, arm: str, name: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["arm"] == arm and row["name"] == name]


def weights(folder: Path, name: str = "student") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


# --- stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TWO_STAGES)
def test_both_stages_are_run_by_one_command(command, method):
    done = command(*QUICK, *SMALL_CNNS, f"method={method}", "trainer.max_epochs=9")
    assert done.status == 0, done.err
    assert "student-initial  training 2 epochs" in done.out  # an eighth of 9, rounded up
    assert "before anything else" in done.out
    assert done.out.index("student-initial  done") < done.out.index("student  training 9 epochs")
    folder = command.folder / done.out.split("\n", 1)[0].split()[-1]
    [term] = method_config(method)["initial"]["terms"]
    losses = curve(folder, "student-initial", f"train/{term}")
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert curve(folder, "student-initial", "val/accuracy") == []  # nothing is selected by a classifier untrained yet


def test_the_student_starts_where_the_first_stage_ended(command, monkeypatch):
    starts = {}
    from kd.distiller import Distiller

    def on_fit_start(module):
        starts.setdefault(len(starts), {n: v.clone() for n, v in module.student.network.state_dict().items()})
        module.teacher.to(module.device)

    monkeypatch.setattr(Distiller, "on_fit_start", on_fit_start)
    folder = command.quick("method=fitnets", *SMALL_CNNS)
    _, baseline, initial, student = (starts[place] for place in range(4))
    assert all(baseline[name].equal(initial[name]) for name in baseline)
    assert not student["layer1.0.conv1.weight"].equal(initial["layer1.0.conv1.weight"])
    assert student["fc.weight"].equal(initial["fc.weight"])  # hints do not reach the classifier
    assert (folder / "student.safetensors").is_file()


def test_a_sweep_over_t_shares_the_first_stage(command):
    command.quick("method=fitnets", *SMALL_CNNS)
    done = command(*QUICK, *SMALL_CNNS, "method=fitnets", "method.temperature=7")
    assert "student-initial  found" in done.out


def test_what_a_first_stage_learns_is_carried_over_and_stays(command, monkeypatch):
    from kd.losses.objective import Objective

    carried = {}
    carry_over = Objective.carry_over

    def watched(objective, found):
        carry_over(objective, found)
        paraphraser = objective.terms["factor"].paraphraser.state_dict()
        carried.update(
            {name: (value.clone(), found[f"factor.paraphraser.{name}"]) for name, value in paraphraser.items()}
        )
        carried["objective"] = objective

    monkeypatch.setattr(Objective, "carry_over", watched)
    command.quick("method=factor", *SMALL_CNNS)
    after = carried.pop("objective").terms["factor"].paraphraser.state_dict()
    assert carried
    assert all(ours.equal(theirs) and ours.equal(after[name].cpu()) for name, (ours, theirs) in carried.items())


# --- networks ---------------------------------------------------------------------------------------------------------


def test_mutual_learning_delivers_both_networks(command):
    folder = command.quick("method=mutual", *SMALL_CNNS)
    arms = result(folder)["arms"]
    assert list(arms) == ["teacher", "baseline", "student", "peer"]
    assert arms["peer"]["model"] == arms["teacher"]["model"] != arms["student"]["model"]
    assert arms["peer"]["test"]["n"] == 397
    assert (
        weights(folder, "peer").keys()
        == weights(command.folder / "outputs/store" / arms["peer"]["store_key"], "weights").keys()
    )
    assert weights(folder).keys() != weights(folder, "peer").keys()
    again = command(*QUICK, "method=mutual", *SMALL_CNNS)
    assert "finished before" in again.out


def test_simkd_delivers_the_student_with_the_teachers_classifier(command):
    folder = command.quick("method=simkd", *SMALL_CNNS)
    arms = result(folder)["arms"]
    teacher = weights(command.folder / "outputs/store" / arms["teacher"]["store_key"], "weights")
    delivered = weights(folder)
    assert delivered["classifier.weight"].equal(teacher["fc.weight"])
    assert delivered["classifier.bias"].equal(teacher["fc.bias"])
    assert not any(name.endswith("fc.weight") for name in delivered)  # the student's own is gone
    assert arms["student"]["params"] > arms["baseline"]["params"]
    assert arms["student"]["macs"] > arms["baseline"]["macs"]


@pytest.mark.parametrize("method", ["byot", "hint", "vid", "crd", "review", "srrl", "factor", "fitnets"])
def test_what_a_method_trains_for_itself_is_not_delivered(command, method):
    folder = command.quick(f"method={method}", *SMALL_CNNS)
    arms = result(folder)["arms"]
    baseline = weights(command.folder / "outputs/store" / arms["baseline"]["store_key"], "weights")
    assert weights(folder).keys() == baseline.keys()
    assert arms["student"]["params"] == arms["baseline"]["params"]


def test_a_network_with_the_teachers_classifier_teaches_no_next_generation(command):
    done = command(*QUICK, "method=simkd", "teacher=self", "teacher.generations=2", "model@student=resnet8")
    assert done.status == 2
    assert "teacher.generations" in done.err


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["crd", "mutual", "vid", "simkd", "byot", "factor", "fitnets", "review"])
def test_a_cut_off_training_ends_bit_identical(command, method, monkeypatch, tmp_path):
    """Projectors, memories, peers and stages are in the checkpoint. Cut off after every epoch in turn."""
    arguments = (*QUICK, *SMALL_CNNS, f"method={method}", "trainer.max_epochs=3")
    whole = command.quick(*arguments, "store.root=whole")
    save = SaveEpoch.on_train_epoch_end

    def save_and_stop(callback, trainer, module):
        save(callback, trainer, module)
        raise KeyboardInterrupt

    monkeypatch.setattr(SaveEpoch, "on_train_epoch_end", save_and_stop)
    for _ in range(20):  # each command trains one epoch more, until all networks are done
        done = command(*arguments, "store.root=parts", "force=true")
        if done.status == 0:
            break
        assert done.status == 130, done.err
    assert "continuing after epoch 3 of 3" in done.out
    parts = command.folder / done.out.split("\n", 1)[0].split()[-1]
    assert parts != whole
    expected, found = weights(whole), weights(parts)
    assert all(expected[name].equal(found[name]) for name in expected)
    for arm in result(whole)["arms"]:
        assert result(whole)["arms"][arm]["test"] == result(parts)["arms"][arm]["test"]
    assert curve(whole, "student", "train/loss") == curve(parts, "student", "train/loss")


# --- weights ----------------------------------------------------------------------------------------------------------


def test_terms_are_combined_and_weights_scheduled(command):
    done = command(*QUICK, *SMALL_CNNS, "method=kd_rkd_attention", "+method.terms.attention.schedule.start_epoch=1")
    assert done.status == 0, done.err
    assert "1000.00 AT (from epoch 2)" in done.out
    folder = command.folder / done.out.split("\n", 1)[0].split()[-1]
    terms = {n: curve(folder, "student", f"train/{n}") for n in ("ce", "kd", "distance", "angle", "attention", "loss")}
    scale = {"ce": 0.1, "kd": 0.9, "distance": 25.0, "angle": 50.0}
    for epoch, attention in enumerate((0.0, 1000.0)):
        total = sum(weight * terms[name][epoch] for name, weight in scale.items())
        assert terms["loss"][epoch] == pytest.approx(total + attention * terms["attention"][epoch], rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (None, [1, 1, 1, 1, 1, 1]),
        ({"warmup_epochs": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),  # DKD's min((epoch from 1) / warmup, 1)
        ({"start_epoch": 2}, [0, 0, 1, 1, 1, 1]),
        ({"start_epoch": 1, "warmup_epochs": 2}, [0, 0.5, 1, 1, 1, 1]),
        ({"step_epochs": [2, 4], "factor": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"step_epochs": [3], "factor": 0, "start_epoch": None}, [1, 1, 1, 0, 0, 0]),
    ],
    ids=str,
)
def test_weight_schedules(schedule, factors):
    made = weight_schedule("schedule", schedule)
    assert [made(epoch) for epoch in range(6)] == pytest.approx(factors)
