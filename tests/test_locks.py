"""Who works in a folder is known; a dead owner's lock is free."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kd.locks import BusyError, is_owned, owned, read_owner

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
