"""Students trained together against the same students trained alone."""

import io
import json
import re
import signal
from collections import namedtuple

import pytest
from rich.console import Console

from kd import build
from kd.curves import read_metrics
from kd.errors import ConfigError, NumericError, StoreError
from kd.lockstep import choose, train
from kd.lockstep.module import Lockstep
from kd.lockstep.train import train_together
from kd.quiet import quiet
from kd.recipe import plan
from kd.store import Store
from kd.train import Trainings
from tests.commands import configured

#: five steps an epoch
SHORT = ("trainer.max_epochs=1", "data.train_limit=160", "data.batch_size=32", "teacher=random", "logger=csv")
MLP = ("model@student=mlp_16", "model@teacher.model=mlp_30")
GRID = [(f"method.temperature={t}", f"method.alpha={a}") for t in (1, 4, 20) for a in (0.1, 0.9)]
SETTINGS = {
    "mlp": MLP,
    "dropout": (*MLP, "student.dropout=0.5", "student.input_dropout=0.2"),
    "clipped": (*MLP, "optim=sgd", "trainer.gradient_clip_val=0.1", "optim/schedule=one_cycle"),
    "cnn": ("model@student=resnet8", "model@teacher.model=resnet8", "optim=sgd", "data.train_limit=40",
            "data.batch_size=8", "data.val=60"),
}  # fmt: skip

#: what two trainings of the same network may say differently (the file's hash: its header has no fixed order)
VARYING = ("seal", "train_s", "images_per_s")


class Bench:
    """Recipes of one group, and what comes of them alone and together."""

    def __init__(self, folder, jobs):
        quiet()
        self.folder = folder
        configs = [configured(*job) for job in jobs]
        self.data = build.data(configs[0])
        self.settings = configs[0].trainer
        self.recipes = [plan(config, self.data).student for config in configs]
        self.cache = "off"
        self.console = Console(width=200, file=io.StringIO())

    def trainings(self, name):
        store = Store(self.folder / name)
        return Trainings(
            self.data, store, self.folder / f"{name}-runs", self.settings, self.console, lambda *_: None,
            cache=self.cache,
        )  # fmt: skip

    def alone(self):
        trainings = self.trainings("alone")
        return {recipe.key: trainings.obtain(recipe) for recipe in self.recipes}

    def together(self, way, name="together"):
        return train_together(self.trainings(name), self.recipes, way)


def bench(tmp_path, *overrides, grid=GRID):
    return Bench(tmp_path, [(*SHORT, *overrides, *values) for values in grid])


def furthest(one, other):
    """The largest difference between two networks' tensors, running statistics included."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize(("name", "epochs"), [*((name, 1) for name in SETTINGS), ("mlp", 4), ("cnn", 2)])
def test_students_are_as_if_each_had_been_trained_alone(tmp_path, name, epochs):
    grid = GRID if epochs == 1 or name != "cnn" else GRID[:2]
    case = bench(tmp_path, *SETTINGS[name], f"trainer.max_epochs={epochs}", grid=grid)
    alone = case.alone()
    looped, stacked = case.together("looped", "looped"), case.together("stacked", "stacked")
    assert looped.choice.way == "looped" and stacked.choice.way == "stacked"
    for key, entry in alone.items():
        expected = entry.weights()
        assert furthest(looped.entries[key].weights(), expected) == 0.0
        assert furthest(stacked.entries[key].weights(), expected) < 1e-5
        if name == "cnn":
            assert any("running_var" in tensor for tensor in expected)
    first, second = list(alone)[:2]
    assert furthest(alone[first].weights(), alone[second].weights()) > 1e-4  # they do learn different things


def test_half_precision_is_that_of_a_student_alone(tmp_path):
    case = bench(tmp_path, *MLP, "trainer.precision=bf16-mixed", grid=GRID[:3])
    alone, looped, stacked = case.alone(), case.together("looped", "looped"), case.together("stacked", "stacked")
    for key, entry in alone.items():
        expected = entry.weights()
        assert furthest(looped.entries[key].weights(), expected) == 0.0
        assert furthest(stacked.entries[key].weights(), expected) < 1e-2


def test_several_steps_in_a_call_change_nothing(tmp_path):
    case = bench(tmp_path, *MLP, "trainer.max_epochs=2", grid=GRID[:2])
    one = case.together("looped", "one")
    case.data.group_steps(3)
    three = case.together("looped", "three")
    for key, entry in one.entries.items():
        assert furthest(three.entries[key].weights(), entry.weights()) == 0.0
        assert read_metrics(three.entries[key].metrics_csv) == read_metrics(entry.metrics_csv)


def test_what_the_store_says_of_a_student_is_what_it_says_of_one_alone(tmp_path):
    case = bench(tmp_path, *MLP, "trainer.max_epochs=3")
    alone, together = case.alone(), case.together("looped")
    for key, entry in alone.items():
        found = together.entries[key]
        own, expected = ({n: v for n, v in one.meta.items() if n not in VARYING} for one in (found, entry))
        assert own.pop("together") == {"students": 6, "way": "looped"}
        assert own == expected
        assert found.meta["selected_epoch"] in (1, 2, 3)
        assert read_metrics(found.metrics_csv) == read_metrics(entry.metrics_csv)
        assert found.meta["train_s"] == pytest.approx(together.seconds / 6)
        assert found.meta["images_per_s"] > 0
    assert not list((tmp_path / "together-runs").iterdir())


def test_the_choice_between_the_ways_leaves_no_trace(tmp_path):
    case = bench(tmp_path, *SETTINGS["dropout"])
    chosen = case.together("auto")
    assert set(chosen.choice.seconds) == {"stacked", "looped"}
    assert chosen.choice.way == min(chosen.choice.seconds, key=chosen.choice.seconds.get)
    forced = case.together(chosen.choice.way, "forced")
    for key, entry in forced.entries.items():
        assert furthest(chosen.entries[key].weights(), entry.weights()) == 0.0
    said = case.console.file.getvalue()
    assert f"6 students together, {chosen.choice.way} (stacked: " in said
    assert "one teacher forward for all" in said


def test_the_teacher_is_asked_once_for_every_batch(tmp_path, monkeypatch):
    from kd.teachers import Frozen

    asked = []
    output = Frozen.output
    monkeypatch.setattr(Frozen, "output", lambda self, batch: asked.append(len(batch.target)) or output(self, batch))
    case = bench(tmp_path, *MLP, "trainer.max_epochs=2")
    case.together("stacked")
    assert asked[-10:] == [32] * 10
    assert len([n for n in asked if n == 32]) == 10


def test_a_cached_teacher_is_shared_too(tmp_path, monkeypatch):
    from kd.teachers import Frozen

    case = bench(tmp_path, *SETTINGS["dropout"], "trainer.max_epochs=2")
    case.cache = "only"  # the rows of such a small teacher may differ from the live one's in their last bits
    alone = case.alone()
    looped, stacked = case.together("looped", "looped"), case.together("stacked", "stacked")
    for key, entry in alone.items():
        assert furthest(looped.entries[key].weights(), entry.weights()) == 0.0
        assert furthest(stacked.entries[key].weights(), entry.weights()) < 1e-5
    said = case.console.file.getvalue()
    assert said.count("students  teacher cached: 320 logits served, 160 of them computed first") == 2
    asked = []
    output = Frozen.output
    monkeypatch.setattr(Frozen, "output", lambda self, batch: asked.append(len(batch.target)) or output(self, batch))
    case.together("looped", "looped-again")
    assert len(asked) < len(case.recipes) * 10


def test_students_of_different_learning_rates_and_methods_share_a_group(tmp_path):
    grid = [("method=kd", f"optim.optimizer.lr={lr}", f"method.temperature={t}") for lr in (1e-3, 1e-2) for t in (2, 8)]
    grid += [("method=dkd", "optim.optimizer.lr=1e-2"), ("method=kd", "optim=sgd")]
    case = bench(tmp_path, *MLP, grid=grid)
    alone, looped, stacked = case.alone(), case.together("looped", "looped"), case.together("stacked", "stacked")
    for key, entry in alone.items():
        assert furthest(looped.entries[key].weights(), entry.weights()) == 0.0
        assert furthest(stacked.entries[key].weights(), entry.weights()) < 1e-5


def test_losses_with_parameters_and_layers_are_looped(tmp_path):
    grid = [("method=vid", f"method.terms.vid.weight={weight}") for weight in (0.5, 1)]
    case = bench(tmp_path, *SETTINGS["cnn"], grid=grid)
    alone, together = case.alone(), case.together("auto")
    assert together.choice.way == "looped"
    assert "their losses have parameters of their own" in together.choice.describe()
    for key, entry in alone.items():
        assert furthest(together.entries[key].weights(), entry.weights()) == 0.0


@pytest.mark.parametrize("way", ["looped", "stacked"])
def test_a_student_that_breaks_is_left_out_and_the_others_go_on(tmp_path, way):
    grid = [*GRID[:3], ("method.terms.kd.weight=3e38", "method.alpha=null", "method.beta=1", "method.temperature=9")]
    case = bench(tmp_path, *MLP, "trainer.max_epochs=3", grid=grid)
    *healthy, broken = case.recipes
    done = case.together(way)
    assert set(done.entries) == {recipe.key for recipe in healthy}
    assert Store(tmp_path / "together").get(broken.key) is None
    trainings = case.trainings("alone")
    with pytest.raises(NumericError) as alone:
        trainings.obtain(broken)
    at = re.search(r"NaN or infinite in epoch 1, step \d+ \(learning rate", str(alone.value))
    assert at and at[0] in done.left[broken.key]
    for recipe in healthy:
        assert furthest(done.entries[recipe.key].weights(), trainings.obtain(recipe).weights()) < 1e-5


@pytest.mark.parametrize("way", ["looped", "stacked"])
def test_a_student_that_breaks_within_an_epoch_is_left_out_at_that_step(tmp_path, way, monkeypatch):
    """It sees no further batch; the others, and what they have logged, are as if it had not been there."""
    case = bench(tmp_path, *MLP, "trainer.max_epochs=3", grid=GRID[:3])
    *healthy, broken = case.recipes
    steps, step = case.data.steps_per_epoch(), Lockstep.step
    assert steps > 3
    trained = []

    def breaking(self, batch):
        trained.append(len(self.active))
        if len(trained) == steps + 3:
            next(self.members[-1].module.student.parameters()).data.fill_(float("inf"))
        step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Lockstep, "step", breaking)
        done = case.together(way)
    assert (
        "loss" in done.left[broken.key] and "NaN or infinite in epoch 2, step 3 (learning rate" in done.left[broken.key]
    )
    assert trained == [3] * (steps + 3) + [2] * (2 * steps - 3)
    alone = case.trainings("alone")
    for recipe in healthy:
        expected = alone.obtain(recipe)
        assert furthest(done.entries[recipe.key].weights(), expected.weights()) < (1e-5 if way == "stacked" else 1e-30)
        rows, wanted = read_metrics(done.entries[recipe.key].metrics_csv), read_metrics(expected.metrics_csv)
        assert [row["name"] for row in rows] == [row["name"] for row in wanted]


def test_a_student_at_chance_is_named_once(tmp_path, monkeypatch):
    grid = [("optim.optimizer.lr=1e-9", "method.temperature=20"), ("method.temperature=2",)]
    case = bench(tmp_path, *MLP, "trainer.max_epochs=3", "data.train_limit=1000", grid=grid)
    signalled(case, "cut", "on_train_batch_end", 1, monkeypatch)
    case.together("looped", "cut")
    (warning,) = (line for line in case.console.file.getvalue().splitlines() if "warning" in line)
    assert warning.startswith(f"{case.recipes[0].objective().describe()}  warning: validation accuracy")
    assert "after epoch 1, where guessing has 10.9%" in warning and "T^2 = 400" in warning


def test_a_student_whose_last_step_breaks_it_is_not_stored(tmp_path):
    """The loss of that step was finite still."""
    far = ("optim.optimizer.lr=1e45", "method.temperature=9")
    case = bench(tmp_path, *MLP, "optim=sgd", "data.batch_size=160", "data.val=0", grid=[*GRID[:2], far])
    done = case.together("auto")
    assert "weights became NaN or infinite in epoch 1" in done.left[case.recipes[-1].key]
    assert set(done.entries) == {recipe.key for recipe in case.recipes[:-1]}


def test_a_teacher_that_changes_while_it_teaches_stops_a_group(tmp_path, monkeypatch):
    step = Lockstep.step

    def disturbing(self, batch):
        step(self, batch)
        next(self.teacher.networks[0].parameters()).data.add_(1)

    monkeypatch.setattr(Lockstep, "step", disturbing)
    with pytest.raises(AssertionError, match="has changed while it taught"):
        bench(tmp_path, *MLP, grid=GRID[:2]).together("looped")


@pytest.mark.parametrize("way", ["looped", "stacked", "auto"])
def test_a_group_that_was_cut_off_ends_with_the_same_weights(tmp_path, monkeypatch, way):
    case = bench(tmp_path, *SETTINGS["dropout"], "trainer.max_epochs=4", "optim=sgd")
    whole = case.together("stacked" if way == "auto" else way, "whole")

    class PowerCutError(Exception):
        pass

    class Cut(train.Progress):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(train, "Progress", Cut)
        patch.setattr(choose, "_times", lambda _: {"looped": 2.0, "stacked": 1.0})
        with pytest.raises(PowerCutError):
            case.together(way, "cut")
    assert not Store(tmp_path / "cut").get(case.recipes[0].key)
    monkeypatch.setattr(choose, "_times", lambda _: {"looped": 1.0, "stacked": 2.0})
    continued = case.together(way, "cut")
    assert "continuing after epoch 2 of 4" in case.console.file.getvalue()
    for key, entry in whole.entries.items():
        assert furthest(continued.entries[key].weights(), entry.weights()) == 0.0
        assert read_metrics(continued.entries[key].metrics_csv) == read_metrics(entry.metrics_csv)
        assert json.dumps(continued.entries[key].meta["val"]) == json.dumps(entry.meta["val"])


def continued_after(case, whole, name, said, way="looped"):
    """Go on with a group that was cut off: it says this, and ends as one that was left alone."""
    continued = case.together(way, name)
    assert said in case.console.file.getvalue()
    for key, entry in whole.entries.items():
        assert furthest(continued.entries[key].weights(), entry.weights()) == 0.0
        assert read_metrics(continued.entries[key].metrics_csv) == read_metrics(entry.metrics_csv)
    assert not list(case.folder.glob(f"{name}-runs/together*"))
    return continued


class SignalledError(Exception):
    """What somebody's handler does."""


def signalled(case, name, hook, epoch, monkeypatch, way="looped"):
    """Train a group that gets SIGTERM in an epoch, where a callback's hook is for the first time."""

    def heard(*_):
        raise SignalledError

    class Ended(train.Progress):
        pass

    def end(self, trainer, *_):
        if trainer.current_epoch == epoch:
            signal.raise_signal(signal.SIGTERM)

    setattr(Ended, hook, end)
    before = signal.signal(signal.SIGTERM, heard)
    try:
        with monkeypatch.context() as patch, pytest.raises(SignalledError):
            patch.setattr(train, "Progress", Ended)
            case.together(way, name)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_disk_without_room_for_a_groups_checkpoint_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9 - 2**20, 2**20))
    case = bench(tmp_path, *MLP)
    with pytest.raises(StoreError, match=r"Not enough space for checkpoints in .* 1\.0 MB are free"):
        case.together("looped")
    assert "epoch 1" not in case.console.file.getvalue()


def test_a_group_is_saved_before_a_signal_ends_it(tmp_path, monkeypatch):
    case = bench(tmp_path, *SETTINGS["dropout"], "trainer.max_epochs=4", grid=GRID[:2])
    whole = case.together("looped", "whole")
    signalled(case, "late", "on_validation_end", 2, monkeypatch)
    continued_after(case, whole, "late", "continuing after epoch 3 of 4")
    signalled(case, "early", "on_train_epoch_start", 2, monkeypatch)
    continued_after(case, whole, "early", "continuing after epoch 2 of 4 and 1 steps")


@pytest.mark.parametrize("way", ["looped", "stacked"])
@pytest.mark.parametrize("calls", [1, 2])
def test_a_group_goes_on_at_the_very_step(tmp_path, monkeypatch, way, calls):
    case = bench(tmp_path, *SETTINGS["dropout"], "trainer.max_epochs=3", f"trainer.steps_per_call={calls}")
    whole = case.together(way, "whole")
    signalled(case, "cut", "on_train_batch_end", 1, monkeypatch, way)
    continued_after(case, whole, "cut", f"continuing after epoch 1 of 3 and {calls} steps", way)


@pytest.mark.parametrize("way", ["looped", "stacked"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_group_of_which_one_breaks_goes_on_at_the_very_step(tmp_path, monkeypatch, way, epoch):
    """Cut off after an epoch's first step: of the epoch in which the student breaks, and of the next one."""
    breaks = ("method.terms.kd.weight=3e38", "method.alpha=null", "method.beta=1", "method.temperature=9")
    case = bench(tmp_path, *SETTINGS["dropout"], "trainer.max_epochs=3", grid=[*GRID[:2], breaks])
    whole = case.together(way, "whole")
    signalled(case, "cut", "on_train_batch_end", epoch, monkeypatch, way)
    done = continued_after(case, whole, "cut", f"continuing after epoch {epoch} of 3 and 1 steps", way)
    assert done.left == whole.left and list(done.left) == [case.recipes[-1].key]


@pytest.mark.parametrize(("way", "after"), [("stacked", "stacked"), ("stacked", "looped"), ("looped", "stacked")])
def test_the_rest_of_a_group_goes_on_at_the_very_step(tmp_path, monkeypatch, way, after):
    case = bench(tmp_path, *SETTINGS["dropout"], "trainer.max_epochs=2", grid=GRID[:4])
    whole = case.together(way, "whole")
    signalled(case, "cut", "on_train_batch_end", 1, monkeypatch, way)
    case.trainings("cut").obtain(case.recipes[1])  # another run was faster with one of them
    done = case.together(after, "cut")
    assert "continuing after epoch 1 of 2 and 1 steps" in case.console.file.getvalue()
    for key, entry in whole.entries.items():
        assert furthest(done.entries[key].weights(), entry.weights()) < 1e-5
        for mine, expected in zip(
            read_metrics(done.entries[key].metrics_csv), read_metrics(entry.metrics_csv), strict=True
        ):
            assert float(mine["value"]) == pytest.approx(float(expected["value"]), rel=1e-4)


@pytest.mark.parametrize("stored", [1, 2])
def test_a_group_that_was_cut_off_while_its_networks_were_stored_stores_the_others(tmp_path, monkeypatch, stored):
    case = bench(tmp_path, *SETTINGS["dropout"], "trainer.max_epochs=2", grid=GRID[:3])
    whole = case.together("stacked", "whole")
    case.trainings("cut").obtain(case.recipes[0].teacher.members[0])
    put, kept = Store.put, []

    class PowerCutError(Exception):
        pass

    def some(self, key, *arguments):
        if len(kept) == stored:
            raise PowerCutError
        kept.append(key)
        return put(self, key, *arguments)

    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(Store, "put", some)
        case.together("stacked", "cut")
    monkeypatch.setattr(Lockstep, "step", pytest.fail)
    done = case.together("stacked", "cut")
    assert not done.left
    for key, entry in whole.entries.items():
        assert furthest(done.entries[key].weights(), entry.weights()) == 0.0
        assert done.entries[key].meta["together"] == entry.meta["together"] == {"students": 3, "way": "stacked"}


@pytest.mark.parametrize("method", ["vid", "crd"])
def test_a_group_whose_losses_learn_and_remember_goes_on_at_the_very_step(tmp_path, monkeypatch, method):
    grid = [(f"method={method}", f"method.terms.{method}.weight={weight}") for weight in (0.5, 1)]
    case = bench(tmp_path, *SETTINGS["cnn"], "trainer.max_epochs=2", grid=grid)
    whole = case.together("looped", "whole")
    signalled(case, "cut", "on_train_batch_end", 1, monkeypatch)
    continued_after(case, whole, "cut", "continuing after epoch 1 of 2 and 1 steps")


def test_a_group_with_a_cached_teacher_goes_on_at_the_very_step(tmp_path, monkeypatch):
    case = bench(tmp_path, *MLP, "trainer.max_epochs=3", grid=GRID[:2])
    case.cache = "only"
    whole = case.together("stacked", "whole")
    signalled(case, "cut", "on_train_batch_end", 1, monkeypatch, "stacked")
    continued_after(case, whole, "cut", "continuing after epoch 1 of 3 and 1 steps", "stacked")


def test_other_steps_per_call_are_refused_within_an_epoch(tmp_path, monkeypatch):
    case = bench(tmp_path, *MLP, "trainer.max_epochs=2", grid=GRID[:2])
    signalled(case, "cut", "on_train_batch_end", 1, monkeypatch)
    case.settings.steps_per_call = 2
    with pytest.raises(ConfigError, match=r"middle of an epoch with trainer.steps_per_call=1, but this run has 2"):
        case.together("looped", "cut")


def test_a_damaged_checkpoint_of_a_group_is_moved_aside_and_the_one_before_it_used(tmp_path, monkeypatch):
    case = bench(tmp_path, *SETTINGS["dropout"], "trainer.max_epochs=3", grid=GRID[:2])
    whole = case.together("looped", "whole")
    signalled(case, "cut", "on_train_epoch_start", 2, monkeypatch)
    newest = tmp_path / "cut-runs" / train.CHECKPOINT
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    case.together("looped", "cut")
    assert "its SHA-256 is wrong); moved to together.damaged-1.ckpt, trying" in case.console.file.getvalue()
    assert "continuing after epoch 2 of 3\n" in case.console.file.getvalue()
    assert (newest.parent / "together.damaged-1.ckpt").read_bytes() == content
    store = Store(tmp_path / "cut")
    for key, entry in whole.entries.items():
        assert furthest(store.get(key).weights(), entry.weights()) == 0.0


def test_a_checkpoint_of_other_students_is_not_continued(tmp_path, monkeypatch):
    case = bench(tmp_path, *MLP, "trainer.max_epochs=2")
    everyone, whole = case.recipes, case.together("looped", "whole")

    def full(*_):
        raise OSError(28, "No space left on device")

    case.recipes = everyone[:2]
    case.trainings("cut").obtain(everyone[0].teacher.members[0])
    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", full)
        with pytest.raises(OSError, match="No space"):
            case.together("looped", "cut")
    case.recipes = everyone
    done = case.together("looped", "cut")
    assert "starting anew: " in case.console.file.getvalue()
    for key, entry in whole.entries.items():
        assert furthest(done.entries[key].weights(), entry.weights()) == 0.0


def test_what_is_stored_or_being_trained_elsewhere_is_left_alone(tmp_path):
    case = bench(tmp_path, *MLP)
    stored, busy, *rest = case.recipes
    trainings = case.trainings("together")
    before = trainings.obtain(stored)
    stamp = (before.folder / "meta.json").stat().st_mtime_ns
    with trainings.store.lock(busy.key, on_wait=pytest.fail):
        done = case.together("looped")
        assert done.left == {busy.key: "another run is training it"}
        assert (before.folder / "meta.json").stat().st_mtime_ns == stamp
        assert {recipe.key for recipe in rest} < set(done.entries)
        again = case.together("looped")
    assert again.choice is None and set(again.entries) == set(done.entries)
    last = case.together("looped")
    assert last.left == {busy.key: "no other student is left to train it with"}
