"""`teacher.cache`: the student that a cached teacher makes is bit by bit that of the live one, or the run stops."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from kd import build, cached_teacher
from kd.batch_loss import BatchLoss
from kd.cache_file import LOGITS, CacheFile, hashes
from kd.cached_teacher import Cached
from kd.data import Digits
from kd.data.images import ImageData
from kd.distiller import Distiller
from kd.dry_run import dry_run
from kd.errors import ConfigError, NumericError, StoreError
from kd.folder import config_hash
from kd.quiet import quiet
from kd.recipe import plan
from kd.store import Store
from kd.teachers import Frozen
from kd.train import Trainings
from kd.types import Output
from tests.commands import configured

# 200 images in batches of 32: six whole ones and one of 8
DATA = ("data.train_limit=200", "data.batch_size=32", "data.test_limit=4", "data.augment=crop_flip")
TRAINING = ("trainer.max_epochs=3", "trainer.accelerator=cpu", "trainer.threads=1", "logger=csv", "teacher=random")
MLP = ("model@student=mlp_16", "model@teacher.model=mlp_400")
CNN = ("model@student=resnet8", "model@teacher.model=resnet8")
VIEWS = {"none": 1, "shift": 25, "crop_flip": 162}


class Seen:
    """What a training said, and the batches that its teacher ran on: inside of a step, and before an epoch."""

    def __init__(self, monkeypatch):
        self.said, self.live, self.before = "", [], []
        self._in_step = False
        step, output = Distiller.step, Frozen.output

        def in_step(module, batch):
            self._in_step = True
            try:
                return step(module, batch)
            finally:
                self._in_step = False

        def counted(teacher, batch):
            (self.live if self._in_step else self.before).append(len(batch.image))
            return output(teacher, batch)

        monkeypatch.setattr(Distiller, "step", in_step)
        monkeypatch.setattr(Frozen, "output", counted)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`train("seed=1")` distils a student, with the caches of those before; returns its weights and `Seen`."""
    students = iter(range(100))

    def train(*overrides, cache="only", store="store"):
        with monkeypatch.context() as patched:
            quiet()
            seen = Seen(patched)
            config = configured(*DATA, *TRAINING, *MLP, *overrides, f"teacher.cache={cache}")
            build.device(config.trainer)
            data = build.data(config)
            planned = plan(config, data)
            dry_run(planned, data, cache=cache)
            seen.before.clear()
            console = Console(file=io.StringIO(), record=True, width=500)
            root = Store(tmp_path / store)
            trainings = Trainings(
                data, root, tmp_path / f"part-{next(students)}", config.trainer, console, lambda *_: None, cache=cache
            )
            entry = trainings.obtain(planned.student)
            weights = entry.weights()
            if seen.before:
                assert seen.before.pop(0) == 2  # blank images, while the student was built
            for file in entry.folder.iterdir():  # the next training of this student is one
                file.unlink()
            entry.folder.rmdir()
            seen.said = console.export_text()
            return weights, seen

    return train


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


def caches(tmp_path):
    return sorted((tmp_path / "store" / "cache").iterdir())


# --- the same student -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data.augment=none",),
        ("data.augment=shift", *CNN),
        CNN,
        (*CNN, "trainer.precision=bf16-mixed"),
        ("trainer.precision=bf16-mixed",),
        ("teacher=ensemble", "teacher.size=2", "teacher.max_epochs=1"),
        ("data.batch_size=300",),
        ("data.omit=[3]",),
        ("trainer.steps_per_call=4",),
    ],
    ids=lambda overrides: "-".join(overrides) or "mlp",
)
def test_a_cached_teacher_makes_the_same_student(overrides, train):
    """Bit by bit: when the cache is filled, when it is found, and when another seed has filled parts of it."""
    live, seen = train(*overrides, cache="off")
    assert "cached" not in seen.said and "live" not in seen.said
    filled, _ = train(*overrides)
    found, seen = train(*overrides)
    train(*overrides, "seed=7", "method.temperature=2")
    mixed, _ = train(*overrides, "seed=8")
    assert same(filled, live)
    assert same(found, live)
    assert same(mixed, train(*overrides, "seed=8", cache="off")[0])
    assert not same(mixed, live)
    assert seen.live == []


def test_the_losses_of_every_step_are_the_same(train, monkeypatch):
    losses, eager = [], BatchLoss.eager

    def recorded(loss, batch):
        found = eager(loss, batch)
        losses.append(found[0].detach())
        return found

    monkeypatch.setattr(BatchLoss, "eager", recorded)
    for cache in ("off", "only", "only"):
        train(cache=cache)
    live, filled, found = torch.stack(losses).split(21)
    assert torch.equal(live, filled)
    assert torch.equal(live, found)


def test_the_teacher_runs_once_per_view_and_never_in_a_step(train):
    _, seen = train("data.augment=none")
    # the trial of 6 batches in two orders, the 192 images, 64 of them again and 8 in a smaller batch; then, in each of
    # two epochs, the images that were in the small batch so far, and again the 64 and the 8
    assert seen.live == []
    assert seen.before[:21] == [32] * 12 + [32] * 6 + [8] + [32] * 2
    assert set(seen.before) == {8, 32}  # in no other size, also where few are missing
    assert seen.before.count(8) == 3
    assert "1 views x 1,400 images, up to 67.2 kB" in seen.said
    assert "0% filled" in seen.said
    _, seen = train("data.augment=none", "method.alpha=0.9")
    assert (seen.live, seen.before) == ([], [8, 32, 32] * 3)
    assert "14% filled" in seen.said
    assert "576 logits served, 0 of them computed first" in seen.said


def test_every_temperature_and_seed_shares_the_file(train, tmp_path):
    for overrides in ((), ("seed=1",), ("method.temperature=9", "method.alpha=0.2"), ("model@student=mlp_400",)):
        train(*overrides)
    assert len(caches(tmp_path)) == 1


def test_what_another_teacher_image_transform_or_arithmetic_gives_is_kept_apart(train, tmp_path, monkeypatch):
    different = [
        (),
        ("teacher.seed=5",),  # other weights
        ("model@teacher.model=mlp",),
        ("data.augment=shift",),
        ("data.batch_size=64",),
        ("trainer.precision=bf16-mixed",),
        ("trainer.threads=2",),
    ]
    for count, overrides in enumerate(different, 1):
        train(*overrides, "trainer.max_epochs=1")
        assert len(caches(tmp_path)) == count
    monkeypatch.setattr(Digits, "std", [0.4])
    train("trainer.max_epochs=1")
    assert len(caches(tmp_path)) == len(different) + 1
    read = Digits.read

    def one_pixel_changed(data):
        found = read(data)
        found["train"][0][17, 0, 3, 3] ^= 1
        return found

    monkeypatch.setattr(Digits, "read", one_pixel_changed)
    train("trainer.max_epochs=1")
    assert len(caches(tmp_path)) == len(different) + 2
    monkeypatch.setattr("kd.fingerprint.VERSION", 2)
    train("trainer.max_epochs=1")
    assert len(caches(tmp_path)) == len(different) + 3


# --- never wrong ------------------------------------------------------------------------------------------------------


def forge(folder, change=0.5):
    """Change every kept logit, with hashes that fit."""
    file = CacheFile.find(folder, json.loads((folder / "meta.json").read_text())["identity"])
    entries = np.fromfile(folder / "entries.bin", "<u4").reshape(-1, 2)
    logits = np.fromfile(folder / LOGITS, "<f4").reshape(len(file), -1) + np.float32(change)
    entries[:, 1] = hashes(entries[:, 0], logits.view("<u4"))
    logits.tofile(folder / LOGITS)
    entries.tofile(folder / "entries.bin")


@pytest.mark.parametrize("mode", ["auto", "only"])
def test_a_wrong_logit_stops_the_run(mode, train, tmp_path):
    train("data.augment=none")
    (folder,) = caches(tmp_path)
    forge(folder, 2**-20)
    wrong = (
        r"teacher cache .*cache/\w+ is wrong: of 32 entries .* before epoch 1, .* by up to 9.*e-07. Delete that folder"
    )
    with pytest.raises(StoreError, match=wrong):
        train("data.augment=none", cache=mode)


def test_a_damaged_file_stops_the_run(train, tmp_path):
    train("data.augment=none")
    (folder,) = caches(tmp_path)
    content = bytearray((folder / LOGITS).read_bytes())
    content[100] ^= 1
    (folder / LOGITS).write_bytes(content)
    with pytest.raises(StoreError, match="is damaged: the logits of entry"):
        train("data.augment=none")


def test_a_transform_that_is_not_what_it_seems_stops_the_run(train, monkeypatch):
    """The check goes through the datamodule's own hook, as the batches of the steps do."""
    own = ImageData.on_after_batch_transfer

    def brighter(data, batch, place):
        made = own(data, batch, place)
        return made._replace(image=made.image + 0.01)

    monkeypatch.setattr(ImageData, "on_after_batch_transfer", brighter)
    with pytest.raises(StoreError, match="the transform is not what it was taken for"):
        train()


def test_another_epoch_s_logits_are_never_served(train, monkeypatch):
    """Were the start of an epoch to be missed, its steps would run the teacher."""
    begin = Cached.begin_epoch
    monkeypatch.setattr(
        Cached, "begin_epoch", lambda teacher, epoch, **given: epoch == 1 or begin(teacher, epoch, **given)
    )
    made, seen = train()
    assert len(seen.live) == 7
    assert same(made, train(cache="off")[0])


def test_a_teacher_in_train_mode_is_refused(train, monkeypatch):
    begin = Distiller.on_train_epoch_start

    def in_train_mode(module):
        module.teacher.networks[0].train()
        begin(module)

    monkeypatch.setattr(Distiller, "on_train_epoch_start", in_train_mode)
    with pytest.raises(ConfigError, match="teacher is in train mode"):
        train()


# --- not possible, or not worthwhile ----------------------------------------------------------------------------------


class Mixed(Digits):
    """As someone would add MixUp."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        made = super().on_after_batch_transfer(batch, dataloader_idx)
        return made._replace(image=(made.image + made.image.flip(0)) / 2)


HINT = ("method=hint", *CNN)
MIXED = ("data._target_=tests.test_teacher_cache.Mixed",)


@pytest.mark.parametrize(
    "overrides, reason",
    [
        (HINT, "method 'hint' reads layers of the teacher"),
        (MIXED, "Mixed has a `on_after_batch_transfer` of its own"),
    ],
)
def test_what_cannot_be_cached_runs_live_and_is_refused_under_only(overrides, reason, train):
    with pytest.raises(ConfigError, match=f"teacher.cache=only is not possible here: {reason}.*auto or off"):
        train(*overrides)
    _, seen = train(*overrides, cache="auto")
    assert f"teacher live: {reason}" in seen.said
    assert len(seen.live) == 21
    assert seen.before == []


@pytest.mark.parametrize("teacher", ["none", "virtual", "ema"])
def test_a_teacher_without_logits_to_keep_is_refused_at_once(teacher):
    with pytest.raises(ConfigError, match=f"only` has no meaning for teacher={teacher}: .*. Use auto or off"):
        configured(f"teacher={teacher}", "method=kd", "teacher.cache=only")


def test_a_student_without_a_teacher_cannot_insist_on_a_cache(train):
    with pytest.raises(ConfigError, match="only is not possible here: method 'hard' looks at no teacher's logits"):
        train("method=hard")


@pytest.fixture
def infinite(monkeypatch):
    """Teachers that give infinite logits."""
    output = Frozen.output
    monkeypatch.setattr(Frozen, "output", lambda *given: Output(output(*given).logits / 0.0, {}))


def test_logits_that_are_not_finite_are_not_kept(infinite, train, tmp_path):
    with pytest.raises(
        NumericError, match=r"teacher's logits of 192 of 192 images are NaN or infinite\. It is the teacher"
    ):
        train()
    assert not (tmp_path / "store" / "cache").exists()


def test_a_live_teacher_whose_logits_are_not_finite_is_named(infinite, train):
    with pytest.raises(
        NumericError, match=r"the teacher's logits are NaN or infinite in epoch 1, step 1\. It is the teacher"
    ):
        train(cache="off")


def test_a_small_teacher_runs_live(train):
    _, seen = train("model@teacher.model=mlp_16", cache="auto")
    assert "teacher live: its 1,184 multiply-accumulates cost no more than finding what they gave" in seen.said
    assert len(seen.live) == 21
    assert "teacher cached" in train(cache="auto")[1].said


def test_a_run_without_a_teacher_has_no_cache(train, tmp_path):
    _, seen = train("method=hard", cache="auto")
    assert "cached" not in seen.said and "live" not in seen.said
    assert not (tmp_path / "store" / "cache").exists()


class Placed(torch.nn.Module):
    """Its last bits depend on an image's place in its batch."""

    def __init__(self, num_classes, **ignored):
        super().__init__()
        self.fc = torch.nn.Linear(64, num_classes)

    def forward(self, image):
        return self.fc(image.flatten(1)) * (1 + 1e-6 * torch.arange(len(image)).view(-1, 1))


def test_a_teacher_whose_bits_depend_on_the_batch_runs_live(train, monkeypatch):
    """Under `only` the cache is used all the same, checked within rounding, and says what it is not."""
    monkeypatch.setattr("kd.teacher_cache.WORTHWHILE_MACS", 0)
    placed = "teacher.model._target_=tests.test_teacher_cache.Placed"
    live, seen = train(placed, cache="auto")
    reason = "the last bits of its logits depend on an image's place in its batch here (by up to "
    assert f"teacher live: {reason}" in seen.said
    assert len(seen.live) == 21
    assert len(train(placed, cache="auto")[1].before) == 0  # known from the first time
    cached, seen = train(placed)
    assert f"not bit by bit the live teacher's: {reason}" in seen.said
    assert seen.live == []
    for name, value in live.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-2, atol=1e-3)


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_cache_that_does_not_fit_is_not_begun(train, monkeypatch):
    monkeypatch.setattr(cached_teacher, "_free_bytes", lambda folder: 50_000)
    live, seen = train(cache="auto")
    assert "teacher live: the cache may take 28.8 kB" in seen.said
    assert len(seen.live) == 21
    assert same(live, train(cache="off")[0])
    with pytest.raises(StoreError, match="only is not possible here: the cache may take"):
        train()
    monkeypatch.setattr(cached_teacher, "_free_bytes", lambda folder: 60_000)
    assert train(cache="auto")[1].live == []


def test_a_disk_that_becomes_full_stops_no_run(train, monkeypatch, tmp_path):
    live, _ = train(cache="off")
    write, written = CacheFile.write, []

    def full(file, entries, bits):
        if written:
            raise OSError(28, "No space left on device")
        written.append(len(entries))
        write(file, entries, bits)

    monkeypatch.setattr(CacheFile, "write", full)
    made, seen = train()
    assert same(made, live)
    assert seen.said.count("takes no more (No space left on device): what it does not have is computed before") == 1
    assert seen.live == []
    monkeypatch.setattr(CacheFile, "write", write)
    assert same(train()[0], live)


@pytest.mark.parametrize("mode", ["auto", "only"])
def test_a_folder_that_cannot_be_written(mode, train, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "cache").write_text("in the way")
    if mode == "only":
        with pytest.raises(StoreError, match="cannot be used"):
            train()
    else:
        _, seen = train(cache="auto")
        assert "teacher live: " in seen.said and "cannot be used" in seen.said
        assert len(seen.live) == 21


# --- what it does not decide ------------------------------------------------------------------------------------------


def test_the_cache_decides_no_result():
    hashes = {config_hash(configured(f"teacher.cache={mode}")) for mode in ("auto", "off", "only")}
    assert len(hashes) == 1
    config = configured()
    data = build.data(config)
    keys = {plan(configured(f"teacher.cache={mode}"), data).student.key for mode in ("auto", "off", "only")}
    assert len(keys) == 1
