"""Omitted classes: the three bias rules against plain loops, and that no omitted image is ever learned from."""

import json

import pytest
import torch

from kd import build, omission, recipe
from kd.distiller import Distiller
from tests.commands import QUICK, Command, configured


def made(images=300, classes=5, seed=0, weak=(3,), by=3.0):
    """Logits of a fair classifier, whose logits of some classes are too low."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), target] += 2
    logits[:, list(weak)] -= by
    return logits, target


def called(logits, bias):
    """The class that each image is called with biases added, image by image."""
    found = []
    for row in logits.double().tolist():
        values = [value + b for value, b in zip(row, bias, strict=True)]
        found.append(max(range(len(values)), key=values.__getitem__))
    return found


def right(logits, target, bias):
    return sum(a == b for a, b in zip(called(logits, bias), target.tolist(), strict=True))


def test_prior_gives_the_class_its_known_share_of_the_predictions():
    logits, target = made()
    shares = (torch.bincount(target, minlength=5) / len(target)).tolist()
    bias = omission.prior_bias(logits, [3], shares)
    assert bias.tolist().count(0.0) == 4
    assert called(logits, [0.0] * 5).count(3) < 20, "the class is hardly ever predicted before"
    assert called(logits, bias.tolist()).count(3) == round(shares[3] * len(target))


@pytest.mark.parametrize("seed", range(5))
def test_prior_meets_the_shares_of_many_classes_at_once(seed):
    """As with a transfer set of two classes out of ten."""
    logits, target = made(images=1000, classes=10, seed=seed, weak=[0, 1, 2, 3, 4, 5, 6, 9], by=6.0)
    shares = (torch.bincount(target, minlength=10) / len(target)).tolist()
    bias = omission.prior_bias(logits, [0, 1, 2, 3, 4, 5, 6, 9], shares)
    found = called(logits, bias.tolist())
    for label in (0, 1, 2, 3, 4, 5, 6, 9):
        assert abs(found.count(label) - round(shares[label] * 1000)) <= 1
    assert bias[7] == bias[8] == 0


def test_prior_takes_images_that_tie_together_or_not_at_all():
    logits = torch.tensor([[1.0, 0.0]] * 4 + [[0.5, 0.0]])
    bias = omission.prior_bias(logits, [1], [0.4, 0.6])
    assert called(logits, bias.tolist()).count(1) == 1, "three of five are wanted, but four tie"


@pytest.mark.parametrize("weak", [(3,), (0, 1, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_oracle_is_the_best_bias_that_a_search_finds(weak, seed):
    logits, target = made(seed=seed, weak=weak)
    on = torch.zeros(5)
    on[list(weak)] = 1
    found = omission.oracle_bias(logits, target, weak)
    best = max(right(logits, target, (step / 50 * on).tolist()) for step in range(-300, 600))
    assert right(logits, target, (found * on.double()).tolist()) >= best
    assert best > right(logits, target, [0.0] * 5)


def test_oracle_leaves_a_class_alone_that_no_bias_helps():
    logits = torch.tensor([[3.0, 0.0], [2.0, 0.0]])
    assert omission.oracle_bias(logits, torch.tensor([0, 0]), [1]) == 0


def test_the_blocks_of_result_json_say_before_and_after_for_every_rule():
    logits, target = made()
    shares = (torch.bincount(target, minlength=5) / len(target)).tolist()
    entries, correction = omission.corrections(logits, target, [3], 2.5, logits, shares)
    assert [(entry["class"], entry["rule"]) for entry in entries] == [(3, "fixed"), (3, "prior"), (3, "oracle")]
    threes = [place for place, label in enumerate(target.tolist()) if label == 3]
    for entry in entries:
        bias = [0.0, 0.0, 0.0, entry["bias"], 0.0]
        before, after = called(logits, [0.0] * 5), called(logits, bias)
        assert entry["accuracy_before"] == pytest.approx(sum(before[i] == 3 for i in threes) / len(threes))
        assert entry["accuracy_after"] == pytest.approx(sum(after[i] == 3 for i in threes) / len(threes))
        assert entry["overall_after"] == pytest.approx(right(logits, target, bias) / len(target))
        rule = correction["rules"][entry["rule"]]
        assert rule["bias"] == {"3": entry["bias"]}
        assert rule["errors"] == len(target) - right(logits, target, bias)
        assert rule["omitted_errors"] == sum(after[i] != 3 for i in threes)
        for label in range(5):
            row = [
                sum(a == label and b == other for a, b in zip(target.tolist(), after, strict=True))
                for other in range(5)
            ]
            assert rule["confusion"][label] == row
    assert entries[0]["bias"] == 2.5
    assert correction["before"]["omitted_n"] == len(threes)
    assert correction["missing"] == {}
    for point in correction["curve"]:
        after = right(logits, target, [0.0, 0.0, 0.0, point["bias"], 0.0])
        assert point["accuracy"] == pytest.approx(after / len(target))
    biases = [entry["bias"] for entry in entries]
    assert correction["curve"][0]["bias"] < 0 < max(biases) < correction["curve"][-1]["bias"]


def test_a_rule_that_cannot_be_is_said_to_be_missing():
    logits, target = made()
    entries, correction = omission.corrections(logits, target, [3], None, None, [0.2] * 5)
    assert [entry["rule"] for entry in entries] == ["oracle"]
    assert "data.omit_bias" in correction["missing"]["fixed"]
    assert "data.val" in correction["missing"]["prior"]


# --- no leak ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("omit_from", ["[baseline,student]", "[teacher]"])
def test_no_omitted_image_reaches_a_batch_that_an_arm_learns_or_is_selected_by(
    tmp_path, monkeypatch, capsys, omit_from
):
    """Every batch of every training and validation step is looked at, and the labels that the losses see."""
    seen: dict[tuple[str, str], set[int]] = {}
    for step in ("step", "validation_step"):
        original = getattr(Distiller, step)

        def spied(module, batch, *rest, original=original, step=step):
            seen.setdefault((module.arm, step), set()).update(batch.target.tolist())
            return original(module, batch, *rest)

        monkeypatch.setattr(Distiller, step, spied)
    done = Command(tmp_path, monkeypatch, capsys)(*QUICK, "data.omit=[3,5]", f"data.omit_from={omit_from}")
    assert done.status == 0, done.err
    assert len(seen) == 6, "three arms train and are validated"
    for (arm, _), labels in seen.items():
        never = {3, 5} if arm in omit_from else set()
        assert labels == set(range(10)) - never, arm


def test_a_run_reports_every_rule_of_the_arms_that_never_saw_the_class_and_only_of_these(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    done = command("trainer.max_epochs=4", "logger=csv", "latency=false", "data.omit=[3]", "data.omit_bias=2")
    assert done.status == 0, done.err
    arms = json.loads(next(tmp_path.glob("outputs/*/*/result.json")).read_text())["arms"]
    assert arms["teacher"]["omitted"] is None and arms["teacher"]["correction"] is None
    for arm in ("baseline", "student"):
        assert [entry["rule"] for entry in arms[arm]["omitted"]] == ["fixed", "prior", "oracle"]
        before = arms[arm]["test"]
        assert arms[arm]["omitted"][0]["accuracy_before"] == before["per_class_accuracy"][3]
        assert sum(before["confusion"][3]) == arms[arm]["correction"]["before"]["omitted_n"]


def test_a_bias_without_an_omitted_class_is_refused(tmp_path, monkeypatch, capsys):
    done = Command(tmp_path, monkeypatch, capsys)("data.omit_bias=2")
    assert done.status == 2
    assert "data.omit" in done.err


@pytest.mark.parametrize(
    "teacher", [("teacher=none", "method=hard"), ("teacher=ema",), ("teacher=checkpoint", "teacher.path=x.safetensors")]
)
def test_nothing_can_be_kept_from_a_teacher_that_is_not_trained_here(tmp_path, monkeypatch, capsys, teacher):
    done = Command(tmp_path, monkeypatch, capsys)("data.omit=[3]", "data.omit_from=[teacher]", *teacher)
    assert done.status == 2
    assert "data.omit_from" in done.err


def test_a_teacher_that_is_its_students_average_never_saw_the_class_either(tmp_path, monkeypatch, capsys):
    done = Command(tmp_path, monkeypatch, capsys)(*QUICK, "latency=false", "data.omit=[3]", "teacher=ema")
    assert done.status == 0, done.err
    arms = json.loads(next(tmp_path.glob("outputs/*/*/result.json")).read_text())["arms"]
    assert [entry["rule"] for entry in arms["teacher"]["omitted"]] == ["prior", "oracle"]


def test_held_out_images_are_all_of_the_validation_split_and_shares_those_of_all_images():
    config = configured("data.omit=[3]")
    data = build.data(config)
    data.use(recipe.plan(config, data).student.view)
    held_out = torch.cat([batch.target for batch in data.held_out_dataloader()])
    validated = torch.cat([batch.target for batch in data.val_dataloader()])
    assert len(held_out) == data.counts()["val"] > len(validated)
    assert 3 in held_out and 3 not in validated
    labels = torch.cat([data.train_targets[data.train_rows], data.train_targets[data.val_rows]]).tolist()
    assert data.class_shares() == pytest.approx([labels.count(label) / len(labels) for label in range(10)])
