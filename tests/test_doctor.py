"""`python -m kd.doctor`: what is sound is ok, what is not is named, and --fix takes away nothing that is good."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from kd import checksums, doctor, leftovers
from kd.cache_file import CacheFile
from kd.locks import owned
from kd.store import Store
from kd.tracking import server
from tests.commands import ROOT

DEAD = 2**22 - 3  # above the highest number of a process that Linux gives unless it is told otherwise
KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A store of two networks, a finished run and one that was begun; no login."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("KD_DATA_DIR", str(tmp_path / "data"))
    store = Store("outputs/store")
    for key in (KEY, f"{KEY}-ema"):
        store.put(key, nn.Linear(2, 2), {})
    for run, names in {"done": ("config.yaml", "result.json"), "begun": ("config.yaml",)}.items():
        folder = Path("outputs/digits_kd", run)
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text("{}")


def lines(capsys, *arguments: str, status: int = 0) -> dict[str, list[tuple[str, str]]]:
    """What the doctor says, by its subject."""
    assert doctor.main(list(arguments)) == status
    found: dict[str, list[tuple[str, str]]] = {}
    for line in capsys.readouterr().out.splitlines():
        level, what, text = line.split(maxsplit=2)
        found.setdefault(what, []).append((level, text))
    return found


def everything() -> set[Path]:
    return set(Path("outputs").rglob("*"))


def test_a_sound_workplace_is_all_ok(capsys):
    said = lines(capsys)
    assert {level for group in said.values() for level, _ in group} == {"ok"}
    assert f"torch {torch.__version__.partition('+')[0]}" in said["versions"][0][1]
    assert said["store"][0][1].startswith("2 networks in outputs/store")
    assert said["runs"] == [("ok", "1 finished"), ("ok", said["runs"][1][1])]
    assert "1 begun; the same command continues them: outputs/digits_kd/begun" in said["runs"][1][1]
    assert said["leftovers"] == [("ok", "none")]


def test_a_folder_without_anything_is_sound_too(capsys, tmp_path):
    shutil.rmtree("outputs")
    assert lines(capsys)["store"] == [("ok", "outputs/store: nothing trained yet")]
    assert not Path("outputs").exists()


def damage_bytes(entry: Path) -> None:
    content = bytearray((entry / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (entry / "weights.safetensors").write_bytes(bytes(content))


def damage_link(entry: Path) -> None:
    (entry / "meta.json").rename(entry.parent / "elsewhere")
    (entry / "meta.json").symlink_to(entry.parent / "elsewhere")


DAMAGES = {
    "a bit": (damage_bytes, "SHA-256"),
    "a digit": (
        lambda entry: (entry / "meta.json").write_text((entry / "meta.json").read_text().replace(KEY, KEY[::-1])),
        "meta.json is damaged: it is not what was stored",
    ),
    "no weights": (lambda entry: (entry / "weights.safetensors").unlink(), "FileNotFoundError"),
    "no description": (lambda entry: (entry / "meta.json").unlink(), "FileNotFoundError"),
    "no json": (lambda entry: (entry / "meta.json").write_text("["), "cannot be read"),
    "deep json": (lambda entry: (entry / "meta.json").write_text("[" * 100_000), "RecursionError"),
    "no hash": (lambda entry: (entry / "meta.json").write_text("{}"), "KeyError"),
    "a list": (lambda entry: (entry / "meta.json").write_text("[]"), "TypeError"),
    "a link": (damage_link, "meta.json is a symbolic link"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_network_is_bad_and_is_not_removed(capsys, name):
    damage, words = DAMAGES[name]
    damage(Path("outputs/store", KEY))
    before = everything()
    said = lines(capsys, "--fix", status=1)["store"]
    assert [level for level, _ in said] == ["bad", "ok"]
    assert f"outputs/store/{KEY}: " in said[0][1] and words in said[0][1]
    assert "Delete the folder; the network is then trained again." in said[0][1]
    assert "1 networks" in said[1][1]
    assert everything() == before


# --- leftovers --------------------------------------------------------------------------------------------------------


def test_a_teacher_cache_is_no_network_and_is_looked_at_too(capsys):
    identity = {"teacher": "of a test"}
    meta = {"identity": identity, "itemsize": 4, "classes": 3, "entries": 10}
    kept = CacheFile.create(Path("outputs/store/cache/0123"), meta)
    kept.write(np.arange(2), np.ones((2, 3), np.uint32))
    said = lines(capsys)
    assert said["store"][0][1].startswith("2 networks in outputs/store")
    assert said["cache"] == [("ok", "1 teacher caches in outputs/store/cache, 0.0 MB")]

    with Path("outputs/store/cache/0123/logits.bin").open("r+b") as file:
        file.truncate(13)
    level, words = lines(capsys, "--fix", status=1)["cache"][0]
    assert level == "bad" and "logits.bin has 13 bytes, 2 entries need 24" in words and "Delete the folder" in words
    assert Path("outputs/store/cache/0123").is_dir()

    Path("outputs/store/cache/0123/meta.json").rename("elsewhere")
    Path("outputs/store/cache/0123/meta.json").symlink_to(Path("elsewhere").absolute())
    assert "meta.json is a symbolic link to " in lines(capsys, status=1)["cache"][0][1]


def leave(pid: int) -> list[Path]:
    """What a process of this number may leave half written."""
    run, sweep = Path("outputs/digits_kd/begun"), Path("outputs/digits_kd/sweep-01234567")
    left = [run / f".result.json-{pid}", run / f".report.html-{pid}", Path(f"outputs/store/.{KEY}-{pid}")]
    left += [Path(f"outputs/store/.probe-{pid}"), sweep / "running" / "job.json"]
    left += [Path(f"outputs/store/cache/.0123-{'ab' * 16}-{pid}")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    left[2].unlink()
    left[2].mkdir()
    (left[2] / "weights.safetensors").touch()
    left[4].write_text(json.dumps({"host": socket.gethostname(), "pid": pid}))
    return left


def test_what_the_dead_have_left_is_told_and_with_fix_removed(capsys):
    good = everything()
    left = leave(DEAD)
    left += [Path("outputs/digits_kd/begun/checkpoints/0123.partial"), Path("outputs/digits_kd/begun/.owner.json")]
    left[-2].parent.mkdir()
    for path in left[-2:]:
        path.touch()
    before = everything()
    assert lines(capsys)["leftovers"][0][0] == "warn"
    assert everything() == before
    said = lines(capsys, "--fix")["leftovers"]
    assert {text for _, text in said} == {f"removed {path}" for path in left}
    assert good <= everything()
    assert not any(path.exists() for path in left)
    assert lines(capsys)["leftovers"] == [("ok", "none")]


def test_what_the_living_write_is_left_alone(capsys):
    leave(os.getpid())
    before = everything()
    assert lines(capsys, "--fix")["leftovers"] == [("ok", "none")]
    assert everything() == before


def test_a_folder_in_which_somebody_works_is_left_alone(capsys):
    """Perhaps on another machine, where the number is another process's."""
    left = leave(DEAD)
    run, sweep = Path("outputs/digits_kd/begun"), Path("outputs/digits_kd/sweep-01234567")
    with owned(run), owned(sweep), FileLock(f"outputs/store/{KEY}.lock"):
        said = lines(capsys, "--fix")["leftovers"]
    assert {words for _, words in said} == {f"removed {path}" for path in (left[3], left[5])}
    assert sum(path.exists() for path in left) == 4


def test_the_mark_of_another_machine_is_left_alone(capsys):
    mark = leave(DEAD)[4]
    mark.write_text(json.dumps({"host": "elsewhere", "pid": DEAD}))
    lines(capsys, "--fix")
    assert mark.exists()


def test_a_link_is_removed_and_not_what_it_leads_to(capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()
    Path(f"outputs/store/.{KEY}-{DEAD}").symlink_to(tmp_path / "mine")
    lines(capsys, "--fix")
    assert (tmp_path / "mine" / "thesis").exists()
    assert not Path(f"outputs/store/.{KEY}-{DEAD}").is_symlink()


def test_what_cannot_be_removed_is_said(capsys, monkeypatch):
    leave(DEAD)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(leftovers, "remove", refuse)
    said = lines(capsys, "--fix", status=1)["leftovers"]
    assert {level for level, _ in said} == {"bad"}
    assert "cannot be removed: Permission denied" in said[0][1]


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_data_are_held_against_their_checksums(capsys, tmp_path, monkeypatch):
    known = {
        "a/one": "f97c5d29941bfb1b2fdab0874906ab82",
        "a/two": "b8a9f715dbb64fd5c56e7783c6820a61",
    }  # MD5 of their names
    monkeypatch.setattr(doctor, "DATASETS", {"mine": known, "other": {"b/x": "0"}})
    (tmp_path / "data" / "a").mkdir(parents=True)
    assert "not in" in lines(capsys)["data"][0][1]
    (tmp_path / "data/a/one").write_text("one")
    said = lines(capsys, status=1)["data"]
    assert said[0] == ("bad", f"mine in {tmp_path / 'data'} lacks a/two. Put the files there, or delete the rest.")
    (tmp_path / "data/a/two").write_text("two")
    assert lines(capsys)["data"] == [("ok", f"digits (built in), mine; not in {tmp_path / 'data'}: other")]
    (tmp_path / "data/a/two").write_text("2wo")
    os.utime(tmp_path / "data/a/two", (1, 1))
    assert "two is damaged: its MD5 is" in lines(capsys, status=1)["data"][0][1]
    assert set(doctor.DATASETS) and checksums.missing(tmp_path, known) == list(known)


@pytest.mark.parametrize(("free", "level", "status"), [(10**8, "bad", 1), (2 * 10**9, "warn", 0), (10**11, "ok", 0)])
def test_little_room(capsys, monkeypatch, free, level, status):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    assert lines(capsys, status=status)["disk"][0][0] == level


def test_a_server_that_does_not_answer_costs_a_second(capsys, monkeypatch):
    asked = []
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(server, "reachable", lambda seconds: asked.append(seconds) or len(asked) > 1)
    assert lines(capsys)["W&B"][0][0] == "warn"
    assert lines(capsys)["W&B"][0] == ("ok", "login for api.wandb.ai, which answers")
    assert asked == [1.0, 1.0]


def test_runs_that_are_not_uploaded(capsys):
    folder = Path("outputs/digits_kd/done/wandb/offline-run-20260101_000000-x")
    folder.mkdir(parents=True)
    (folder.parent / "complete").touch()
    assert lines(capsys)["W&B"][1] == ("warn", "1 runs are not uploaded: python -m kd.sync outputs")


def test_missing_and_old_packages_are_bad(capsys, monkeypatch):
    def fake(name):
        if name == "lightning":
            raise doctor.PackageNotFoundError
        return "2.9.1+cpu" if name == "torch" else "9.9"

    monkeypatch.setattr(doctor, "version", fake)
    said = lines(capsys, status=1)["versions"]
    assert ("bad", "not installed: lightning. Run `make setup`.") in said
    assert ("bad", "too old: torch 2.9.1+cpu (at least 2.11). Run `make setup`.") in said


def test_a_gpu_that_torch_cannot_use(capsys, monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Some GPU, 81559 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert doctor.torch_uses_gpus() == (torch.version.cuda is not None or torch.version.hip is not None)
    monkeypatch.setattr(doctor, "torch_uses_gpus", lambda: True)
    said = lines(capsys)["devices"]
    assert len(said) == 1 and said[0][1].startswith("Some GPU, 81559 MiB, ")
    monkeypatch.setattr(doctor, "torch_uses_gpus", lambda: False)
    assert lines(capsys)["devices"][1][0] == "warn"


def test_the_command_says_it_without_torch(tmp_path):
    code = (
        "import sys; from kd import doctor; status = doctor.main([]); sys.exit(9 if 'torch' in sys.modules else status)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, timeout=60).returncode == 0
