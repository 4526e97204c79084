"""Audits: what they run, how they judge, what they refuse. Most runs here are written, not trained."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kd.audit.__main__ import main
from kd.audit.evidence import CONTROLS
from kd.audit.judge import ITSELF
from kd.audit.request import parse
from kd.audit.runs import plan
from kd.errors import ConfigError, DataError
from tests.written import IMAGES, better, write_all, write_run

ROOT = Path(__file__).parents[1]
SHORT = ("trainer.max_epochs=2", "data.train_limit=192", "logger=csv")
SMALL_T = "experiment=mnist_small_t"  # an experiment whose claim has three comparisons, two of them versus other runs


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to audit in, where no run can be trained: every process that an audit starts fails."""
    monkeypatch.chdir(tmp_path)
    broken(monkeypatch, tmp_path, "echo 'Error: the sky fell' >&2; exit 5")
    return tmp_path


def broken(monkeypatch, folder: Path, script: str) -> None:
    """Have the audit start this shell script instead of python -m kd.run."""
    path = folder / "python.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr("kd.audit.runs.sys.executable", str(path))


def audited(path: Path | None = None) -> dict[str, Any]:
    (found,) = [path] if path else list(Path("outputs").glob("*/audit-*/audit.json"))
    return json.loads(found.read_text(encoding="utf-8"))


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_gain_of_every_seed_is_supported(here, capsys):
    given = ["experiment=mnist_hinton", "seeds=6"]
    write_all(given, better)
    assert main(given) == 0
    content = audited()
    comparison = content["comparisons"]["helps"]
    assert comparison["differences"] == {str(seed): pytest.approx((20 + seed) / IMAGES) for seed in range(6)}
    assert comparison["mean"] == pytest.approx(0.00225)
    assert comparison["sd"] == pytest.approx(0.000187, abs=1e-6)
    assert 0.0020 < comparison["low"] < 0.0022 < 0.0023 < comparison["high"] < 0.0025
    assert (comparison["n"], comparison["p"], comparison["p_holm"]) == (6, 2 / 64, 2 / 64)
    assert comparison["verdict"] == "supported"
    assert content["arms"]["student"]["errors"]["published"] == 74
    assert content["arms"]["baseline"]["errors"]["values"]["1"] == 157
    assert content["claim"]["source"].startswith("Hinton")
    assert content["shortened"] is None
    assert (content["overrides"], content["failed"], content["controls"]) == ([], [], None)
    assert content["command"] == "python -m kd.audit experiment=mnist_hinton seeds=6"
    said = capsys.readouterr().out
    assert "6 runs, 6 of them finished before" in said
    for words in ("supported", "+0.22 ± 0.02", "146", "74", "10 for a headline"):
        assert words in said


def test_a_teacher_trained_once_is_one_network_without_a_spread(here, capsys):
    given = ["experiment=mnist_hinton", "seeds=3"]
    write_all(given, better)
    assert main(given) == 0
    content = audited()
    teacher, student = (content["arms"][arm]["errors"] for arm in ("teacher", "student"))
    assert (teacher["one_network"], teacher["mean"], teacher["sd"], teacher["low"]) == (True, 80, None, None)
    assert (student["one_network"], student["sd"] > 0) == (False, True)
    assert content["comparisons"]["helps"]["verdict"] == "too few seeds: 3 of 6"
    assert content["notes"] == [
        "The teacher is one network under all seeds: what is said here holds for this one teacher."
    ]
    assert content["notes"][0] in capsys.readouterr().out


def test_another_teacher_is_another_audit(here):
    for override in (), ("teacher.seed=7",):
        write_all(["experiment=mnist_hinton", "seeds=2", *override], better)
        assert main(["experiment=mnist_hinton", "seeds=2", *override]) == 0
    asked = {path: audited(path) for path in Path("outputs").glob("*/audit-*/audit.json")}
    assert sorted(content["overrides"] for content in asked.values()) == [[], ["teacher.seed=7"]]
    assert main(["outputs"]) == 0
    pooled_by_none = [audited(path) for path in Path("outputs").glob("*/audit-*/audit.json") if path not in asked]
    assert [content["comparisons"]["helps"]["n"] for content in pooled_by_none] == [2, 2]


def test_a_loss_is_refuted_and_noise_is_inconclusive(here):
    given = ["experiment=mnist_hinton", "seeds=[10,11,12,13,14,15]", "out=audit.json"]
    write_all(given, lambda _, seed: {"teacher": 80, "baseline": 100, "student": 100 + seed})
    assert main(given) == 0
    assert audited(Path("audit.json"))["comparisons"]["helps"]["verdict"] == "refuted"
    given = ["experiment=mnist_hinton", "seeds=6", "out=audit.json"]
    write_all(given, lambda _, seed: {"teacher": 80, "baseline": 100, "student": 97 + seed})
    assert main(given) == 0
    assert audited(Path("audit.json"))["comparisons"]["helps"]["verdict"] == "inconclusive"
    assert not list(Path("outputs").glob("*/audit-*"))


def of_temperatures(kind: str, seed: int) -> dict[str, int]:
    """T = 3 is clearly better than T = 1, and now better, now worse than T = 20."""
    student = {"main": 100, "method.temperature=20": 103 - seed, "method.temperature=1": 130 + seed}[kind]
    return {"teacher": 80, "baseline": 150, "student": student}


def test_a_comparison_with_other_runs_is_paired_with_theirs_and_each_is_judged_by_itself(here):
    given = [SMALL_T, "seeds=8"]
    write_all(given, of_temperatures)
    assert main(given) == 0
    found = audited()["comparisons"]
    assert found["higher_than_1"]["differences"]["2"] == pytest.approx(32 / IMAGES)
    assert found["lower_than_20"]["differences"]["2"] == pytest.approx(1 / IMAGES)
    assert [found[name]["verdict"] for name in ("helps", "higher_than_1", "lower_than_20")] == [
        *["supported"] * 2,
        "inconclusive",
    ]
    assert found["helps"]["p"] == 2 / 256
    assert (found["helps"]["p_holm"], found["helps"]["judged_together"]) == (2 / 256, 1)


def test_every_row_of_a_wide_table_keeps_its_name(here, capsys):
    given = ["experiment=mnist_omit3", "seeds=2"]
    write_all(given, better)
    assert main(given) == 0
    said = capsys.readouterr().out
    assert all(f"│ {seed}    │  99.20% │" in said for seed in (0, 1))
    assert max(map(len, said[said.index("by seed") : said.index("Differences in points")].splitlines())) <= 80


def test_a_shortened_audit_says_so_wherever_it_speaks(here, capsys):
    given = [
        "experiment=mnist_hinton",
        "seeds=6",
        "trainer.max_epochs=3",
        "teacher.max_epochs=9",
        "data.train_limit=500",
    ]
    write_all(given, better)
    assert main(given) == 0
    content = audited()
    assert content["shortened"]["trainer.max_epochs"] == {"own": 40, "here": 3}
    assert content["shortened"]["teacher.max_epochs"]["here"] == 9
    assert content["shortened"]["data.train_limit"] == {"own": None, "here": 500}
    helps = content["comparisons"]["helps"]
    assert (helps["setup"], helps["verdict"]) == ("on this shortened setup", "supported")
    assert "trainer.max_epochs=3" in content["overrides"]
    said = " ".join(capsys.readouterr().out.split())
    assert "shortened: trainer.max_epochs 3 of 40" in said
    assert "on this shortened setup: supported" in said
    assert "says nothing about the published claim" in said


def test_debug_smoke_is_shortened_and_other_settings_are_not(here):
    from kd.audit.settings import changes, own_settings, shortened

    own = own_settings("mnist_hinton")
    for override, expected in (
        (
            "debug=smoke",
            {"trainer.max_epochs", "teacher.max_epochs", "data.train_limit", "data.test_limit", "data.val"},
        ),
        ("trainer.max_epochs=400", set()),
        ("method.temperature=8", set()),
        ("data.test_limit=500", {"data.test_limit"}),
        ("data.val=9000", {"data.val"}),
        ("logger=csv", set()),
    ):
        here = asdict(plan(parse(["experiment=mnist_hinton", "seeds=1", override])).main[0].config)
        assert set(shortened(own, here) or {}) - {"teacher.max_epochs"} == expected - {"teacher.max_epochs"}, override
    here["latency"] = False
    assert changes(own, here) == []
    assert own_settings("no_such_experiment") is None


def test_a_verdict_names_the_setup_that_it_speaks_of(here, capsys):
    for override, setup in (
        ("method.temperature=8", "with method.temperature=8"),
        ("trainer.max_epochs=400", "with trainer.max_epochs=400"),
        ("trainer.precision=bf16-mixed", None),
        ("latency=false", None),
        ("teacher.seed=7", None),
    ):
        given = ["experiment=mnist_hinton", "seeds=6", override]
        write_all(given, better)
        assert main([*given, "out=audit.json"]) == 0
        content = audited(Path("audit.json"))
        assert [content["setup"], content["comparisons"]["helps"]["setup"]] == [setup, setup]
        assert content["comparisons"]["helps"]["verdict"] == "supported"
        said = " ".join(capsys.readouterr().out.split())
        assert f"helps (student - baseline, accuracy): {setup + ': ' if setup else ''}supported" in said
        assert (f"Other than the experiment's own: {override}" in said) == (override != "latency=false")


def test_many_other_settings_are_counted_and_come_after_what_is_shorter():
    from kd.audit.settings import setup

    own = {"data": {"val": 0.1}, "method": {"a": 1, "b": None, "c": [1], "d": 0.5, "e": True}, "trainer": {}}
    here = {"data": {"val": 0.2}, "method": {"a": 2.0, "b": [3, None], "c": "x", "d": 0.25, "e": False}}
    assert setup(own, here) == "on this shortened setup with method.a=2, method.b=[3,null], method.c=x and 2 more"
    assert setup(own, own) is None
    assert setup({"data": {"val": 5000}}, {"data": {"val": 10}}) == "with data.val=10"


def test_a_run_is_not_compared_with_itself(here, capsys):
    given = [SMALL_T, "seeds=6", "method.temperature=20"]
    write_all(given, lambda kind, seed: better("main", seed) | {"student": 140 if kind == "main" else 100 + seed})
    assert main(given) == 0
    by_request = audited()["comparisons"]
    for path in Path("outputs").glob("*/audit-*/audit.json"):
        path.unlink()
    capsys.readouterr()
    assert main(["outputs"]) == 0
    found = {
        content["settings"]["temperature"]: content for content in map(audited, Path("outputs").glob("*/audit-*/*"))
    }
    for comparisons in (by_request, found[20]["comparisons"]):
        itself, other = comparisons["lower_than_20"], comparisons["higher_than_1"]
        assert (itself["verdict"], itself["missing"]) == (f"not judged: {ITSELF}", ITSELF)
        assert (itself["n"], itself["p_holm"], itself["judged_together"]) == (0, None, 0)
        assert (other["n"], other["verdict"]) == (6, "refuted")
    assert "lower_than_20: this is the run itself" in capsys.readouterr().out


def test_a_versus_that_changes_nothing_compares_arms_of_one_run(here):
    given = [SMALL_T, "seeds=6", "claim.comparisons.helps.versus=['method.temperature=3']"]
    write_all(given, lambda kind, seed: better("main", seed))
    assert main(given) == 0
    assert audited()["comparisons"]["helps"]["verdict"] == "supported"


# --- controls ---------------------------------------------------------------------------------------------------------


def of_controls(smoothed: int, untrained: int, own_kind: int):
    """So many errors fewer than the plain baseline; the student itself has 30 fewer."""

    def errors(kind: str, seed: int) -> dict[str, int]:
        baseline = 200 + 3 * (seed % 5)
        fewer = {"label smoothing": smoothed, "random teacher": untrained, "self-KD": own_kind}.get(kind, 30)
        arm = CONTROLS[kind][0] if kind in CONTROLS else "student"
        return {"teacher": 80, "baseline": baseline, "student": baseline - 30, arm: baseline - fewer + seed % 2}

    return errors


@pytest.mark.parametrize(
    ("fewer", "words"),
    [
        ((10, -5, 12), "the student's gain exceeds label smoothing, random teacher and self-KD"),
        ((10, -5, 30), "exceeds label smoothing and random teacher, is not shown to exceed self-KD"),
        ((60, -5, 12), "exceeds random teacher and self-KD, is below that of label smoothing"),
    ],
)
def test_controls_are_compared_with_the_baseline_and_with_the_student(here, capsys, fewer, words):
    given = ["experiment=mnist_hinton", "seeds=6", "controls=true"]
    write_all(given, of_controls(*fewer))
    assert main(given) == 0
    controls = audited()["controls"]
    smoothing = controls["found"]["label smoothing"]
    assert smoothing["minus_baseline"]["differences"]["0"] == pytest.approx(fewer[0] / IMAGES)
    assert smoothing["student_minus"]["differences"]["0"] == pytest.approx((30 - fewer[0]) / IMAGES)
    assert words in controls["words"]
    assert words in capsys.readouterr().out
    assert (controls["gain"]["verdict"], controls["gain"]["n"]) == ("supported", 6)


def test_controls_of_few_seeds_or_without_a_gain_say_only_that(here):
    given = ["experiment=mnist_hinton", "seeds=2", "controls=true", "out=few.json"]
    write_all(given, of_controls(10, 10, 10))
    assert main(given) == 0
    assert "too few seeds" in audited(Path("few.json"))["controls"]["words"]
    given = ["experiment=mnist_kd", "seeds=6", "controls=true", "out=none.json"]
    write_all(given, lambda kind, seed: {"teacher": 80, "baseline": 100, "student": 97 + seed})
    assert main(given) == 0
    assert "no gain over the baseline" in audited(Path("none.json"))["controls"]["words"]


def test_what_a_comparison_chooses_anew_replaces_what_the_audit_sets_below_it():
    given = ["experiment=cifar_fitnets", "method.initial.epochs=1", "student.width=8", "trainer.max_epochs=3"]
    versus = ["'method=kd'", "'model@student=cnn3'"]
    given.append(f"claim.comparisons.above_kd.versus=[{','.join(versus)}]")
    planned = plan(parse([*given, "seeds=1"]))
    other = planned.versus["method=kd", "model@student=cnn3"][0]
    assert planned.main[0].config.method.initial.epochs == 1
    assert (other.config.method.name, other.config.method.initial, other.config.trainer.max_epochs) == ("kd", None, 3)
    assert not {"method.initial.epochs=1", "student.width=8"} & set(other.overrides)


def test_controls_have_teachers_of_their_own():
    planned = plan(parse(["experiment=mnist_hinton", "seeds=1", "controls=true", "teacher=ensemble", "teacher.size=2"]))
    random, own = planned.controls["random teacher"][0].config.teacher, planned.controls["self-KD"][0].config.teacher
    assert planned.controls["label smoothing"][0].config.teacher.kind == "ensemble"
    # the experiment trains its teacher for 100 epochs on shifted images; neither control does
    assert (random.kind, random.size) == ("random", None)
    assert (own.kind, own.max_epochs, own.augment, own.size) == ("self", None, None, None)
    assert own.model["hidden"] == [800, 800]


def test_self_kd_is_no_control_of_itself():
    planned = plan(parse(["experiment=cifar_selfkd", "seeds=2", "controls=true"]))
    assert planned.same_as_student == ["self-KD"]
    assert set(planned.controls) == {"label smoothing", "random teacher"}
    untrained = planned.controls["random teacher"][0].config
    assert untrained.teacher.model == untrained.student  # not some default network


# --- what is run ------------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_reported_and_the_others_are_judged(here, capsys):
    given = ["experiment=mnist_hinton", "seeds=7"]
    write_all(["experiment=mnist_hinton", "seeds=6"], better)
    assert main(given) == 6
    content = audited()
    assert content["comparisons"]["helps"]["verdict"] == "supported"
    assert content["comparisons"]["helps"]["n"] == 6
    assert (
        content["comparisons"]["helps"]["missing"]
        == "no the student's accuracy and no the baseline's accuracy for seed 6"
    )
    (failure,) = content["failed"]
    assert failure == {
        "seed": 6,
        "command": "python -m kd.run experiment=mnist_hinton seed=6",
        "status": 5,
        "error": "the sky fell",
    }
    said = capsys.readouterr()
    assert said.out.count(failure["command"]) == 2  # when it starts, and at the end
    assert "the sky fell" in said.out.splitlines()[-3]


def test_a_mistake_that_only_a_run_finds_ends_the_audit_before_anything_is_trained(here, monkeypatch):
    broken(monkeypatch, here, "echo 'Error: no such files' >&2; exit 3")
    with pytest.raises(DataError, match=r"no such files \(from python -m kd.run experiment=mnist_kd seed=0\)"):
        main(["experiment=mnist_kd", "seeds=3"])
    assert not Path("outputs").exists()


def test_finished_runs_of_a_sweep_are_found(here):
    given = ["experiment=mnist_kd", "seeds=2"]
    for seed, job in plan(parse(given)).main.items():
        write_run(Path("outputs/mnist_kd/sweep-01234567"), job, better("main", seed))
    assert main(given) == 0
    assert audited()["comparisons"]["helps"]["n"] == 2


@pytest.mark.parametrize(("sign", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_reaches_the_run_and_the_audit_waits_for_it(here, monkeypatch, sign, raised):
    from kd.audit.runs import _run
    from kd.leaving import preempted

    script = "trap 'sleep 0.2; echo INT > left; exit 130' INT; trap 'sleep 0.2; echo TERM > left; exit 143' TERM\n"
    broken(monkeypatch, here, script + "echo > ready; while true; do sleep 0.05; done")
    before = signal.signal(sign, signal.default_int_handler if sign == signal.SIGINT else preempted)

    waiting = threading.Event()

    class Watched(subprocess.Popen):
        def communicate(self, *arguments, **options):
            waiting.set()
            return super().communicate(*arguments, **options)

    monkeypatch.setattr("kd.audit.runs.subprocess.Popen", Watched)

    def interrupt() -> None:
        while not (here / "ready").exists():
            time.sleep(0.01)
        waiting.wait()
        os.kill(os.getpid(), sign)

    job = plan(parse(["experiment=digits_kd", "seeds=1"])).main[0]
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(raised):
            _run(job)
    finally:
        signal.signal(sign, before)
    assert (here / "left").read_text().strip() == sign.name.removeprefix("SIG")


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["experiment=mnist_kd", "seeds=0"], ["`seeds`", "'0'", "seeds=[3,4,5]"]),
        (["experiment=mnist_kd", "seeds=x"], ["`seeds`", "'x'"]),
        (["experiment=mnist_kd", "seeds=[1,1]"], ["`seeds`", "different"]),
        (["experiment=mnist_kd", "seeds=[]"], ["`seeds`"]),
        (["experiment=mnist_kd", "seeds=[-1]"], ["`seeds`"]),
        (["experiment=mnist_kd", "seeds=[4294967296]"], ["`seed`", "4294967296"]),
        (["experiment=mnist_kd", "seeds=2", "seeds=3"], ["`seeds` is given 2 times"]),
        (["experiment=mnist_kd", "seed=3"], ["seed=3", "seeds="]),
        (["experiment=mnist_kd", "force=true"], ["force=true", "never repeats"]),
        (["experiment=mnist_kd", "hydra.run.dir=x"], ["hydra.run.dir=x", "out=FILE"]),
        (["experiment=mnist_kd", "controls=maybe"], ["`controls`", "'maybe'"]),
        (["experiment=mnist_kd", "out=here"], ["`out`", ".json", "'here'"]),
        (["experiment=mnist_kd", "method.temperature=0"], ["`method.temperature`", "above 0"]),
        (["experiment=mnist_kd", "--multirun"], ["--multirun", "--help"]),
        ([SMALL_T, "claim.comparisons.helps.minus=teacher", "teacher=virtual"], ["helps", "teacher=virtual", "no"]),
        (["seeds=6"], ["experiment=NAME", "FOLDER"]),
        ([], ["experiment=NAME", "FOLDER"]),
        (["no/such/folder"], ["There is no folder no/such/folder"]),
        (["conf", "seeds=6"], ["not both", "seeds=6"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else None,
)
def test_bad_input_is_refused_before_anything_runs(here, given, words):
    with pytest.raises(ConfigError) as refused:
        main(given)
    for word in words:
        assert word in str(refused.value)
    assert not Path("outputs").exists()


@pytest.mark.parametrize("out", ["file/audit.json", "/proc/audit.json"])
def test_a_place_that_cannot_be_written_is_found_before_anything_runs(here, monkeypatch, out):
    broken(monkeypatch, here, "touch started; exit 5")
    (here / "file").touch()
    with pytest.raises(ConfigError, match=f"Cannot write out={out}: .*Name a file elsewhere"):
        main(["experiment=mnist_kd", "seeds=1", f"out={out}"])
    assert not (here / "started").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["experiment=mnist_kdd"], ["Unknown experiment 'mnist_kdd'", "Did you mean 'mnist_kd'"]),
        (["experiment=mnist_kd", "method.temprature=3"], ["'method.temprature'", "Did you mean"]),
        (["experiment=mnist_kd", "method.temperature=1,2"], ["method.temperature"]),
        (["experiment=mnist_kd", "seeds=six"], ["`seeds`"]),
        (["experiment=mnist_kd", "seeds=1", "controls=true", "student.hiden=8"], ["Did you mean 'student.hidden'"]),
        (["experiment=mnist_kd", "method.initial.epochs=1"], ["do not fit together", "method.initial.epochs=1"]),
    ],
    ids=lambda value: value[-1],
)
def test_bad_input_ends_with_2_and_without_torch(tmp_path, given, words):
    done = command(tmp_path, *given)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "outputs").exists()


def test_help_says_what_an_audit_is(tmp_path):
    done = command(tmp_path, "--help")
    assert done.returncode == 0
    for words in ("seeds=6", "controls=true", "FOLDER", "exit status", "sign-flip"):
        assert words in done.stdout


def command(folder: Path, *given: str) -> subprocess.CompletedProcess[str]:
    """Run the command where torch cannot be imported, which proves that it does without."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    arguments = [sys.executable, "-m", "kd.audit", *given]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


# --- finished folders -------------------------------------------------------------------------------------------------


def test_finished_folders_are_judged_without_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_all(["experiment=mnist_hinton", "seeds=6"], better)
    done = command(tmp_path, "outputs/mnist_hinton")
    assert done.returncode == 0, done.stderr
    content = audited()
    assert content["comparisons"]["helps"]["verdict"] == "supported"
    assert content["seeds"] == [0, 1, 2, 3, 4, 5]
    assert content["command"] == "python -m kd.audit outputs/mnist_hinton"


def test_runs_of_different_settings_are_audits_of_their_own(here):
    for override in ("method.temperature=8", "method.temperature=9"):
        write_all(["experiment=mnist_kd", "seeds=2", override], better)
    assert main(["outputs"]) == 0
    found = [audited(path) for path in Path("outputs").glob("*/audit-*/audit.json")]
    assert sorted(content["settings"]["temperature"] for content in found) == [8, 9]
    assert [content["comparisons"]["helps"]["n"] for content in found] == [2, 2]
    assert {tuple(content["overrides"]) for content in found} == {
        ("method.temperature=8",),
        ("method.temperature=9",),
    }
    with pytest.raises(ConfigError, match="2 configurations"):
        main(["outputs", "out=one.json"])


def test_the_configurations_of_a_sweep_are_judged_together(here, capsys):
    for temperature in (8, 9):
        write_all(["experiment=mnist_hinton", "seeds=6", f"method.temperature={temperature}"], better)
    assert main(["outputs"]) == 0
    found = [audited(path)["comparisons"]["helps"] for path in Path("outputs").glob("*/audit-*/audit.json")]
    assert [(one["p"], one["p_holm"], one["judged_together"]) for one in found] == [(2 / 64, 4 / 64, 2)] * 2
    assert {one["verdict"] for one in found} == {"inconclusive"}
    said = capsys.readouterr().out
    assert "p (Holm)" in said
    assert "7 seeds can" in said


def test_a_comparison_with_other_runs_finds_them_among_the_folders_or_says_what_is_missing(here, capsys):
    write_all([SMALL_T, "seeds=6"], of_temperatures)
    assert main(["outputs"]) == 0
    found = {
        content["settings"]["temperature"]: content
        for content in map(audited, Path("outputs").glob("*/audit-*/*.json"))
    }
    assert found[3]["comparisons"]["higher_than_1"]["differences"]["2"] == pytest.approx(32 / IMAGES)
    assert {name: one["n"] for name, one in found[3]["comparisons"].items()} == {
        "helps": 6,
        "lower_than_20": 6,
        "higher_than_1": 6,
    }
    for folder in Path("outputs").glob("mnist_small_t/written-*"):
        if "temperature: 1.0" in (folder / "config.yaml").read_text():
            (folder / "result.json").unlink()
    capsys.readouterr()
    assert main(["outputs"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "higher_than_1: no the student's accuracy under method.temperature=1 for seeds 0, 1, 2, 3, 4, 5" in said


def test_runs_that_others_are_compared_with_change_no_verdict(here, capsys):
    given = [SMALL_T, "seeds=6", "controls=true"]
    write_all(given, lambda kind, seed: of_temperatures("main" if kind in CONTROLS else kind, seed))
    assert main(given) == 0
    (alone,) = Path("outputs").glob("*/audit-*/audit.json")
    by_request = audited(alone)["comparisons"]
    alone.unlink()
    capsys.readouterr()
    assert main(["outputs"]) == 0
    found = {content["settings"]["teacher"]: content for content in map(audited, Path("outputs").glob("*/audit-*/*"))}
    assert set(found) == {"trained", "self"}  # self-KD is a configuration like others
    for name, one in found["trained"]["comparisons"].items():
        assert {**one, "p_holm": 0, "judged_together": 0} == {
            **by_request[name],
            "p_holm": 0,
            "judged_together": 0,
            "verdict": one["verdict"],
        }
        assert one["judged_together"] == 2
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "Here only to be compared with, without an audit of their own: the runs of method.temperature=20; "
        "the runs of method.temperature=1; the control runs of label smoothing; the control runs of an untrained "
        "teacher."
    ) in said


def test_an_audit_of_a_family_has_a_place_of_its_own(here):
    for temperature in (8, 9):
        given = ["experiment=mnist_hinton", "seeds=6", f"method.temperature={temperature}"]
        write_all(given, better)
        assert main(given) == 0
    assert main(["outputs"]) == 0
    found = [audited(path)["comparisons"]["helps"] for path in Path("outputs").glob("*/audit-*/audit.json")]
    assert sorted(one["judged_together"] for one in found) == [1, 1, 2, 2]


def test_a_versus_that_chooses_a_group_is_found_among_folders(here):
    write_all(["experiment=cifar_fitnets", "seeds=2", "data.train_limit=500"], lambda kind, seed: better("", seed))
    assert main(["outputs"]) == 0
    content = audited()  # the only one
    assert content["settings"]["method"] == "fitnets"
    assert [one["n"] for one in content["comparisons"].values()] == [2] * len(content["comparisons"])


def test_what_cannot_be_pooled_is_said(here, capsys):
    jobs = plan(parse(["experiment=mnist_kd", "seeds=2"])).main
    first = write_run(Path("outputs/a"), jobs[0], better("main", 0))
    again = write_run(Path("outputs/b"), jobs[0], better("main", 1))
    bare = write_run(Path("outputs/c"), jobs[1], better("main", 1))
    (bare / "config.yaml").unlink()
    assert main(["outputs"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{again} repeats seed 0 of {first}: left out." in said
    assert f"{bare} has no config.yaml" in said
    assert audited()["comparisons"]["helps"]["n"] == 1
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        main([str(bare)])


def test_results_of_an_unknown_experiment_are_judged_and_their_length_is_said_to_be_unknown(here):
    job = plan(parse(["experiment=mnist_kd", "seeds=1"])).main[0]
    job.config.experiment = "mine"
    write_run(Path("outputs/mine"), job, better("main", 0))
    assert main(["outputs"]) == 0
    content = audited()
    assert content["shortened"] is None
    assert "no experiment mine here" in content["notes"][0]


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> tuple[Path, str, int, int]:
    """An audit of the digits that is killed in its second run, and the same command again."""
    folder = tmp_path_factory.mktemp("audit")
    command = [sys.executable, "-m", "kd.audit", "experiment=digits_kd", "seeds=2", *SHORT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
    started = time.monotonic()
    while "run 2 of 2" not in log.read_text():
        assert process.poll() is None and time.monotonic() - started < 300, log.read_text()
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for pid in [process.pid, *map(int, children.read_text().split() if children.is_file() else [])]:
        os.kill(pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (first,) = folder.glob("outputs/digits_kd/*/result.json")
    written = first.stat().st_mtime_ns
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, written, first.stat().st_mtime_ns


def test_after_kill_9_the_same_command_finishes_and_repeats_no_finished_run(real):
    _, said, before, after = real
    assert before == after
    assert "2 runs, 1 of them finished before" in said
    assert "run 1 of 1" in said
    assert "seed=1" in said


def test_a_real_audit_says_what_its_runs_say(real):
    folder, said, _, _ = real
    (path,) = folder.glob("outputs/digits_kd/audit-*/audit.json")
    content = json.loads(path.read_text())
    results = [json.loads(path.read_text()) for path in folder.glob("outputs/digits_kd/*/result.json")]
    assert len(results) == 2
    for result in results:
        accuracy = {arm: result["arms"][arm]["test"]["accuracy"] for arm in ("baseline", "student")}
        seed = str(result["seed"])
        assert content["arms"]["student"]["accuracy"]["values"][seed] == accuracy["student"]
        difference = content["comparisons"]["helps"]["differences"][seed]
        assert difference == pytest.approx(accuracy["student"] - accuracy["baseline"])
    assert content["arms"]["teacher"]["accuracy"]["one_network"]
    assert set(content["shortened"]) == {"trainer.max_epochs", "data.train_limit"}
    assert content["setup"] == "on this shortened setup"
    assert content["comparisons"]["helps"]["verdict"] == "too few seeds: 2 of 6"
    assert content["device"] in said
    assert str(path.relative_to(folder)) in said
