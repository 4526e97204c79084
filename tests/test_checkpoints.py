"""Checkpoint files: whole or not there, checked, the last two kept, whatever happens to the process or the disk."""

import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections import namedtuple

import pytest
import torch

from kd import checkpoints, files, store
from kd.errors import StoreError
from tests.commands import QUICK, Command


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.ckpt"


def save(path, epoch, size=1000):
    """What a training leaves after an epoch."""
    torch.manual_seed(epoch)
    checkpoints.CheckedIO().save_checkpoint({"epoch": epoch - 1, "weights": torch.randn(size)}, path)


def found(path):
    said = []
    return checkpoints.find(path, said.append), said


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "one_byte": lambda path: path.write_bytes(b"P"),
    "cut_in_the_middle": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut_by_a_byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped_first": lambda path: flip(path, 0),
    "flipped_middle": lambda path: flip(path, path.stat().st_size // 2),
    "flipped_mark": lambda path: flip(path, -70),
    "flipped_digest": lambda path: flip(path, -10),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


def test_nothing_is_found_where_nothing_is(path):
    assert found(path) == (None, [])


def test_the_last_two_are_kept_and_the_newest_is_found(path, tmp_path):
    for epoch in (1, 2, 3):
        save(path, epoch)
    newest, said = found(path)
    assert (newest.path, newest.epochs, said) == (path, 3, [])
    assert checkpoints.read_position(checkpoints.previous(path)).epochs == 2
    assert sorted(one.name for one in tmp_path.iterdir()) == ["network.ckpt", "network.previous.ckpt"]
    torch.manual_seed(3)
    assert checkpoints.CheckedIO().load_checkpoint(path)["weights"].equal(torch.randn(1000))


def test_its_digest_is_that_of_what_torch_wrote(path):
    save(path, 1)
    content, digest = path.read_bytes().split(checkpoints.MARK)
    assert hashlib.sha256(content).hexdigest() == digest.decode().strip() == found(path)[0].digest


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_moved_aside_and_the_one_before_it_used(path, damage):
    for epoch in (1, 2):
        save(path, epoch)
    DAMAGES[damage](path)
    content = path.read_bytes()
    earlier, said = found(path)
    assert earlier.epochs == 1
    assert len(said) == 1 and "is damaged" in said[0] and "trying the one before it" in said[0]
    assert path.with_suffix(".damaged-1.ckpt").read_bytes() == content
    save(path, 2)
    assert found(path)[0].epochs == 2
    assert checkpoints.read_position(checkpoints.previous(path)).epochs == 1  # the good one was not replaced by a bad


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_whole_file_the_training_starts_anew_and_none_is_deleted(path, tmp_path, damage):
    for epoch in (1, 2):
        save(path, epoch)
    for file in (path, checkpoints.previous(path)):
        DAMAGES[damage](file)
    none, said = found(path)
    assert none is None
    assert len(said) == 2 and "starting anew" in said[1]
    assert len(list(tmp_path.glob("network.damaged-*.ckpt"))) == 2


def test_a_whole_file_of_another_version_is_not_taken_for_damaged(path):
    checkpoints.CheckedIO().save_checkpoint({"something": 1}, path)
    with pytest.raises(StoreError, match=r"is whole, but this version cannot read it .*Move it away to start anew"):
        found(path)
    assert path.is_file()


def test_a_pickle_with_code_in_it_is_not_executed(path, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "evil"), "w"))

    checkpoints.CheckedIO().save_checkpoint({"epoch": 0, "evil": Evil()}, path)
    with pytest.raises(StoreError, match="this version cannot read it"):
        found(path)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoints.CheckedIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "evil").exists()


def write_for_ever(path):
    for epoch in itertools.count(1):
        content = {"epoch": epoch - 1, "weights": torch.full((200_000,), float(epoch))}
        checkpoints.CheckedIO().save_checkpoint(content, path)


def test_kill_9_in_the_middle_of_writing_leaves_the_file_before(path):
    for round_ in range(20):
        child = os.fork()  # starts at once, without torch's imports
        if child == 0:
            write_for_ever(path)
        started_at = time.monotonic()
        while not path.is_file() or time.monotonic() - started_at < 0.01 + 0.0037 * round_:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest, said = found(path)
        assert said == []
        assert (checkpoints.CheckedIO().load_checkpoint(newest.path)["weights"] == newest.epochs).all()
        before = checkpoints.previous(path)
        assert not before.is_file() or checkpoints.damage(before) is None


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs to be root, to have a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_keeps_both_files_and_says_so(small_disk):
    path = small_disk / "network.ckpt"
    for epoch in (1, 2):
        save(path, epoch)
    before = {file.name: file.read_bytes() for file in small_disk.iterdir()}
    with pytest.raises(StoreError, match=r"The disk of .* is full.*The earlier ones are whole.*continues the run"):
        save(path, 3, size=2_000_000)
    assert {file.name: file.read_bytes() for file in small_disk.iterdir()} == before
    assert found(path)[0].epochs == 2


def test_a_run_on_a_disk_that_fills_up_ends_with_status_4_and_continues(small_disk, monkeypatch, capsys):
    command = Command(small_disk.parent, monkeypatch, capsys)
    long = (*QUICK, "trainer.max_epochs=8", "hydra.run.dir=disk/run", "store.root=store", "model@teacher.model=mlp_16")
    fill = small_disk / "fill"
    saved, original = [], checkpoints.CheckedIO.save_checkpoint

    def filled(self, content, path, storage_options=None):
        saved.append(content["epoch"])
        if len(saved) == 4:
            fill.write_bytes(bytes(shutil.disk_usage(small_disk).free - 4096))
        return original(self, content, path, storage_options)

    monkeypatch.setattr(checkpoints.CheckedIO, "save_checkpoint", filled)
    done = command(*long)
    assert done.status == 4, done.err
    assert "is full" in done.err and "Traceback" not in done.err
    fill.unlink()
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    again = command(*long)
    assert again.status == 0, again.err
    assert "continuing after epoch 3 of 8" in again.out


def fill_up(disk):
    """Leave no byte free on the small disk, and on no other one."""
    assert os.path.ismount(disk), "no small disk: this would fill the machine's"
    (disk / "fill").write_bytes(bytes(shutil.disk_usage(disk).free))


@pytest.mark.parametrize(
    "name", ["config.yaml", "weights", "meta.json", "student", "metrics.csv", "result.json", ".svg", "report.html"]
)
def test_a_disk_that_is_full_when_something_is_written(name, small_disk, monkeypatch, capsys):
    command = Command(small_disk, monkeypatch, capsys)
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    quick = (*QUICK, "hydra.run.dir=run", "store.root=store", "model@teacher.model=mlp_16")
    written, original = [], files.write_bytes

    def write_bytes(path, content):
        if name in path.name and not written:
            fill_up(small_disk)
            written.append(path)
        original(path, content)

    monkeypatch.setattr(files, "write_bytes", write_bytes)
    monkeypatch.setattr(store, "write_bytes", write_bytes)
    done = command(*quick)
    assert done.status == 4, done.err
    assert f"No space left on device for {written[0]}" in done.err and "Traceback" not in done.err
    assert not list(small_disk.rglob(".*-*"))
    (small_disk / "fill").unlink()
    again = command(*quick)
    assert again.status == 0, again.err
    assert (small_disk / "run" / "report.html").is_file()
    assert not (small_disk / "run" / "error.txt").exists()


def test_a_disk_without_room_is_refused_before_training(tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9 - 2**20, 2**20))
    done = Command(tmp_path, monkeypatch, capsys)(*QUICK)
    assert done.status == 4
    assert "Not enough space for checkpoints in" in done.err
    assert "1.0 MB are free" in done.err
    assert "epoch 1/2" not in done.out


def test_the_size_is_about_that_of_the_file(tmp_path, monkeypatch, capsys):
    from kd import train

    guessed, written = [], []
    original = train.checkpoint_size
    monkeypatch.setattr(train, "checkpoint_size", lambda module: guessed.append(original(module)) or guessed[-1])
    sync = checkpoints.sync_folder

    def measured(folder):
        written.append(max(file.stat().st_size for file in folder.glob("*.ckpt")))
        sync(folder)

    monkeypatch.setattr(checkpoints, "sync_folder", measured)
    Command(tmp_path, monkeypatch, capsys).quick("teacher=ema", "teacher.decay=0.9", "trainer.max_epochs=1")
    assert max(written) <= max(guessed) * 1.5 + 20_000
    assert max(written) >= max(guessed) / 3


def test_a_damaged_checkpoint_of_a_run_is_named_and_the_one_before_used(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    long, original, written = (*QUICK, "trainer.max_epochs=8"), checkpoints.CheckedIO.save_checkpoint, []

    def damaging(self, content, path, storage_options=None):
        original(self, content, path, storage_options)
        written.append(path)
        if len(written) == 4:
            flip(path, 500)
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.CheckedIO, "save_checkpoint", damaging)
    assert command(*long).status == 130
    done = command(*long)
    assert done.status == 0, done.err
    assert "is damaged (its SHA-256 is wrong); moved to" in done.out
    assert "continuing after epoch 3 of 8" in done.out
