"""Ctrl-C and SIGTERM at moments when an exception would be lost: the status, one line, and what was open is closed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kd import leaving
from kd.sweep.task import Task
from kd.sweep.work import perform

ROOT = Path(__file__).parents[1]
ENDS = pytest.mark.parametrize(
    ("sign", "status", "said"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
#: a package that is told to end while it is imported, and makes another error of it, as numpy does
STUMBLES = """
import os
try:
    os.kill(os.getpid(), {sign:d})
except BaseException:
    raise AttributeError("half a module") from None
"""


def python(*arguments: str, cwd: Path, path: str = str(ROOT)) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@ENDS
@pytest.mark.parametrize("package", ["omegaconf", "torch"])
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1")], ids=["run", "sweep"])
def test_a_signal_in_the_middle_of_an_import_ends_the_command(tmp_path, package, sweep, sign, status, said):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(STUMBLES.format(sign=sign))
    done = python("-m", "kd.run", *sweep, cwd=tmp_path, path=f"{tmp_path}:{ROOT}")
    assert (done.returncode, done.stderr) == (status, f"{said}. The same command continues the run.\n")


@ENDS
def test_an_audit_ends_like_a_run(tmp_path, sign, status, said):
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text(STUMBLES.format(sign=sign))
    done = python("-m", "kd.audit", "experiment=digits_kd", cwd=tmp_path, path=f"{tmp_path}:{ROOT}")
    assert (done.returncode, done.stderr) == (status, f"{said}. The same command continues the run.\n")


def script(folder: Path, sign: int, *lines: str) -> subprocess.CompletedProcess[str]:
    text = ["import os", "from kd import leaving", "leaving.at_once()", *lines]
    return python("-c", "\n".join(text).replace("SIGN", str(int(sign))), cwd=folder)


@ENDS
def test_at_once_runs_nothing_any_more(tmp_path, sign, status, said):
    done = script(
        tmp_path, sign, "try:", "    print('begun')", "    os.kill(os.getpid(), SIGN)", "finally:", "    print('open')"
    )
    assert (done.returncode, done.stdout) == (status, "begun\n")
    assert done.stderr == f"{said}. The same command continues the run.\n"


LOST = (
    "with leaving.orderly():",
    "    try:",
    "        try:",
    "            os.kill(os.getpid(), SIGN)",
    "        except BaseException:",
    "            {then}",
    "        leaving.insist()",
    "    finally:",
    "        print('closed')",
    "print('lost')",
)


@ENDS
@pytest.mark.parametrize("then", ["raise ValueError", "pass"])
def test_a_signal_whose_exception_was_lost_arrives_and_what_is_open_is_closed(tmp_path, then, sign, status, said):
    lines = [line.format(then=then) for line in LOST]
    lines[0] = "from kd.cli import messages\nwith messages([]), leaving.orderly():"
    done = script(tmp_path, sign, *lines)
    assert (done.returncode, done.stdout) == (status, "closed\n")
    assert done.stderr == f"{said}. The same command continues the run.\n"


def test_after_orderly_work_a_signal_ends_the_process_at_once(tmp_path):
    done = script(
        tmp_path, signal.SIGTERM, "with leaving.orderly():", "    pass", "try:", "    os.kill(os.getpid(), SIGN)",
        "finally:", "    print('open')",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (143, "")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import os\nfrom kd import leaving\nleaving.at_once()\nos.kill(os.getpid(), 2)"],
        cwd=ROOT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0


def test_a_job_of_a_sweep_has_not_failed_because_of_a_signal(tmp_path, monkeypatch):
    def stumble(*_):
        raise AttributeError("half a module")

    monkeypatch.setattr("kd.sweep.work.parallel.follows", lambda trainer: False)
    monkeypatch.setattr("kd.sweep.work.restored", lambda config: type("Config", (), {"trainer": None}))
    monkeypatch.setattr("kd.sweep.work._do", stumble)
    monkeypatch.setattr(leaving, "_heard", [signal.SIGTERM])
    with pytest.raises(SystemExit) as left:
        perform(Task("job", {}, tmp_path / "job", tmp_path / "mark.json"))
    assert left.value.code == 143
