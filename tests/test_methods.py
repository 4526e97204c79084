"""Methods that do more than add a term: stages, memories, other networks, weights that change over the epochs."""

import csv
import json
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from kd import method_config
from kd.losses.schedule import weight_schedule
from kd.losses.srrl import SRRL
from kd.saving import Save
from kd.teachers import Frozen
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
    assert "│ 2 + 9 │" in done.out.replace("  ", " ").replace("  ", " ").replace("  ", " ").replace("  ", " ")
    assert "student-initial  training 2 epochs" in done.out  # an eighth of 9, rounded up
    assert "before anything else" in done.out
    assert done.out.index("student-initial  done") < done.out.index("student  training 9 epochs")
    folder = command.folder / done.out.split("\n", 1)[0].split()[-1]
    assert f"student minimises  {result(folder)['method']['initial_objective']}, in 2 epochs before" in done.out
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
        if not found:
            return  # an arm without a first stage
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


def test_the_layers_of_every_term_are_part_of_the_key(command):
    """Two terms that read the same layers between them, but each another one, are another method."""
    similar = "+method.terms.sp={_target_: kd.losses.similarity.SimilarityPreserving, weight: 1.0, student: final}"
    arguments = (*SMALL_CNNS, "method=attention", similar)
    last = command.quick(*arguments)
    middle = command.quick(*arguments, "+student.taps.final=layer2")
    assert result(last)["arms"]["student"]["store_key"] != result(middle)["arms"]["student"]["store_key"]
    assert result(last)["arms"]["baseline"]["store_key"] == result(middle)["arms"]["baseline"]["store_key"]


def test_a_first_stage_is_no_whole_training_with_the_same_terms(command):
    folder = command.quick("method=fitnets", *SMALL_CNNS, "method.initial.epochs=2")
    hint = "method.terms={hint: {_target_: kd.losses.hint.Hint, weight: 1.0, student: middle, teacher: middle}}"
    whole = command.quick("method=hint", hint, *SMALL_CNNS)
    initial = sorted((command.folder / "outputs/store").glob("*-terms"))
    assert len(initial) == 1
    assert result(whole)["arms"]["student"]["store_key"] != initial[0].name.removesuffix("-terms")
    assert result(folder)["arms"]["student"]["initial_epochs"] == 2
    assert result(whole)["arms"]["student"]["initial_epochs"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=factor", "method.initial=null"], ["method.initial.terms", "'factor'", "paraphraser"]),
        (["method=factor", "method.terms.factor.rate=0.25"], ["method.terms.factor", "first stage", "size mismatch"]),
        (["method=factor", "teacher=ema"], ["teacher=ema", "factor"]),
        (["method=byot", "teacher=ema"], ["byot", "teacher=none"]),
        (["method=simkd", "teacher=ema"], ["simkd", "teacher=ema"]),
        (["method=simkd", "teacher=self", "teacher.generations=2"], ["simkd", "teacher.generations"]),
        (["method=hint", "method.terms.hint.student=3"], ["method.terms.hint", "`student`", "3"]),
        (["method=hint", "student.taps=layer1"], ["taps", "'layer1'"]),
        (["method=hint", "method.terms.hint.student=[layer1,layer2]"], ["method.terms.hint", "layer1, layer2", "2"]),
        (["method=hint", "method.terms.hint.student=midle"], ["'midle'", "'middle'"]),
        (["method=factor", "method.initial.terms.factor.rate=-1"], ["method.initial.terms.factor", "-1"]),
        (["method=kd", "+method.terms.kd.schedule.start_epoch=2"], ["method.terms.kd", "2 epochs"]),
        (["method=simkd", "+method.terms.h={_target_: kd.losses.hint.Hint, weight: 1}"], ["SimKD", "replaces"]),
        (["method=hard", "method.terms.ce.weight=0"], ["weight above 0"]),
        (["method=hard", "+method.terms.ce.schedule.start_epoch=1"], ["epoch 1"]),
    ],
    ids=lambda value: ",".join(value) if "=" in value[0] else "",
)
def test_what_cannot_work_is_said_before_any_training(command, monkeypatch, arguments, words):
    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("training began"))
    networks = SMALL_CNNS[:1] if any(one.startswith("teacher=") for one in arguments) else SMALL_CNNS
    done = command(*QUICK, *networks, *arguments)
    assert done.status == 2
    assert all(word in done.err for word in words), done.err
    assert "Traceback" not in done.err


def test_a_method_that_looks_at_no_teacher_pays_for_none(command, monkeypatch):
    seen = []
    output = Frozen.output
    monkeypatch.setattr(Frozen, "output", lambda self, batch: seen.append(len(batch.target)) or output(self, batch))
    command.quick("method=byot", *SMALL_CNNS)
    assert set(seen) <= {397}  # the test set, once for each arm


def test_srrl_follows_a_moving_teachers_classifier(command, monkeypatch):
    found = {}
    build = SRRL.build

    def watched(term, setting):
        build(term, setting)
        found.update(term=term, network=setting.teacher_network)

    monkeypatch.setattr(SRRL, "build", watched)
    command.quick("method=srrl", "teacher=ema", "teacher.decay=0.5", SMALL_CNNS[0])
    classifier = found["term"].classifier[0]
    assert classifier is found["network"].fc
    [average] = (command.folder / "outputs/store").glob("*-ema")
    assert classifier.weight.equal(load_file(average / "weights.safetensors")["fc.weight"])


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


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["crd", "mutual", "vid", "simkd", "byot", "factor", "fitnets", "review"])
def test_a_cut_off_training_ends_bit_identical(command, method, monkeypatch, tmp_path):
    """Projectors, memories, peers and stages are in the checkpoint. Cut off after every epoch in turn."""
    arguments = (*QUICK, *SMALL_CNNS, f"method={method}", "trainer.max_epochs=3")
    whole = command.quick(*arguments, "store.root=whole")
    save = Save.on_train_epoch_end

    def save_and_stop(callback, trainer, module):
        save(callback, trainer, module)
        raise KeyboardInterrupt

    monkeypatch.setattr(Save, "on_train_epoch_end", save_and_stop)
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
