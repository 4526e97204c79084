"""Who works in a folder is known; a dead owner's lock is free."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from kd import build
from kd.locks import BusyError, is_owned, owned, read_owner
from kd.quiet import quiet
from kd.recipe import plan
from kd.store import Store
from kd.train import Trainings
from tests.commands import configured

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from pathlib import Path
from kd.locks import owned
with owned(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A folder in which another process works."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout.readline() == "mine\n"
    yield tmp_path, process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_with_its_owner(held):
    folder, process = held
    assert is_owned(folder)
    with (
        pytest.raises(BusyError, match=rf"in use by process {process.pid} on \S+, since \d{{4}}-") as raised,
        owned(folder),
    ):
        pass
    assert raised.value.folder == folder
    assert isinstance(raised.value, ValueError)


def test_kill_9_frees_the_folder(held):
    folder, process = held
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not is_owned(folder)
    with owned(folder):
        assert read_owner(folder)["pid"] == os.getpid()
        assert is_owned(folder)
    assert not is_owned(folder)
    assert read_owner(folder) == {}


def test_an_exception_frees_the_folder(tmp_path):
    with pytest.raises(RuntimeError), owned(tmp_path / "new"):
        raise RuntimeError
    assert not is_owned(tmp_path / "new")


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_note_of_the_owner_is_no_obstacle(held, text):
    folder, _ = held
    (folder / ".owner.json").write_text(text)
    with pytest.raises(BusyError, match="another process"), owned(folder):
        pass


SMALL = ("data.train_limit=64", "data.val=10", "data.test_limit=4", "logger=csv", "trainer.accelerator=cpu")


def want_the_teacher(store: Path, folder: Path) -> None:
    """In a process of its own: obtain a run's teacher, and leave what was said."""
    said = Console(file=(folder / "said.txt").open("w", buffering=1), width=200)
    config = configured(*SMALL, "trainer.max_epochs=40", "data.batch_size=4")
    data = build.data(config)
    teacher = plan(config, data).teacher.members[0]
    Trainings(data, Store(store), folder / "part", config.trainer, said, lambda *_: None).obtain(teacher)


@pytest.mark.parametrize("killed", [False, True])
def test_eight_processes_that_want_one_teacher_train_it_once(tmp_path, killed):
    """If the one that trains is killed, its lock is free at once, and another one trains."""
    quiet()
    folders, children = [tmp_path / str(number) for number in range(8)], {}
    for folder in folders:
        folder.mkdir()
        child = os.fork()  # real processes, without eight times torch's imports
        if child == 0:
            status = 1
            try:
                want_the_teacher(tmp_path / "store", folder)
                status = 0
            finally:
                os._exit(status)
        children[child] = folder

    def saying(word: str) -> list[int]:
        texts = {child: (folder / "said.txt") for child, folder in children.items()}
        return [child for child, file in texts.items() if file.is_file() and word in file.read_text()]

    until = time.monotonic() + 120
    while not saying("teacher  training") or len(saying("waiting for")) < 7:
        assert time.monotonic() < until
        time.sleep(0.005)
    [trains] = saying("teacher  training")
    if killed:
        os.kill(trains, signal.SIGKILL)
    statuses = {child: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
    assert sorted(statuses.values()) == ([-signal.SIGKILL] if killed else [0]) + [0] * 7
    assert len(saying("done in")) == 1
    assert len(saying("teacher  training")) == 1 + killed
    assert len(list(tmp_path.glob("store/*/meta.json"))) == 1
