"""A search: the space of the command line, the study that continues, the best on validation."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from kd.cli import conf_dir
from kd.locks import owned
from kd.sweep import sweep
from kd.sweep.task import FAILED, Outcome
from tests.commands import QUICK, Command
from tests.sweep.searching import Pretended, peak_at_7, sweep_file, trials

ROOT = Path(__file__).parents[2]
SEARCH = ("-m", "hydra/sweeper=optuna", "logger=csv")
INTERVAL = "method.temperature=interval(1,20)"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    return Command(tmp_path, monkeypatch, capsys)


@pytest.fixture
def pretend(monkeypatch):
    """Use a launcher that pretends, in place of the one that the command names."""

    def use(launcher: Pretended) -> Pretended:
        monkeypatch.setattr(sweep, "_launcher", lambda _: launcher)
        return launcher

    return use


def states(folder: Path) -> list[TrialState]:
    return [trial.state for trial in trials(folder)]


def test_a_search_trains_its_trials_and_continues_to_a_larger_number(command, tmp_path):
    arguments = (*SEARCH, *QUICK, INTERVAL, "method.alpha=0.1,0.9")
    first = command(*arguments, "hydra.sweeper.n_trials=2")
    assert first.status == 0, first.err
    names = [job["name"] for job in sweep_file(tmp_path)["jobs"]]
    more = command(*arguments, "hydra.sweeper.n_trials=3")
    assert more.status == 0, more.err
    assert "3 jobs, 2 of them finished before" in more.out
    assert states(tmp_path) == [TrialState.COMPLETE] * 3
    jobs = sweep_file(tmp_path)["jobs"]
    assert [job["name"] for job in jobs[:2]] == names and [job["state"] for job in jobs] == ["done"] * 3
    assert [trial.value for trial in trials(tmp_path)] == [job["result"]["val_accuracy"] for job in jobs]
    assert all(1 <= trial.params["method.temperature"] <= 20 for trial in trials(tmp_path))
    again = command(*arguments, "hydra.sweeper.n_trials=3")
    assert again.status == 0 and "done in" not in again.out and len(trials(tmp_path)) == 3
    last = again.out.strip().splitlines()[-1]
    best = max(trials(tmp_path), key=lambda trial: (trial.value, -trial.number))
    assert shlex.split(last)[:3] == ["python", "-m", "kd.run"]
    assert f"method.alpha={best.params['method.alpha']}" in shlex.split(last)
    assert command(*shlex.split(last)[3:]).status == 0  # what is printed can be typed


def test_the_search_comes_near_the_best_by_validation(command, tmp_path, pretend):
    pretend(Pretended(peak_at_7))
    done = command(*SEARCH, INTERVAL, "hydra.sweeper.n_trials=25")
    assert done.status == 0, done.err
    temperatures = [trial.params["method.temperature"] for trial in trials(tmp_path)]
    drawn, chosen = temperatures[:10], temperatures[10:]  # the first ten are random
    assert sum(abs(t - 7) for t in chosen) / 15 < 0.7 * sum(abs(t - 7) for t in drawn) / 10
    best = min(temperatures, key=lambda t: abs(t - 7))
    assert f"temperature={best:.2f}".rstrip("0") in done.out.splitlines()[-2]


def test_the_value_of_a_trial_is_the_mean_over_the_seeds(command, tmp_path, pretend):
    launcher = pretend(Pretended(lambda c: 0.5 + 0.1 * c.seed + 0.01 * c.method.alpha, slots=4))
    done = command(*SEARCH, "method.alpha=0.1,0.5", "seed=0,1,2", "hydra.sweeper.n_trials=2")
    assert done.status == 0, done.err
    for trial in trials(tmp_path):
        assert trial.params.keys() == {"method.alpha"}
        assert trial.value == pytest.approx(0.6 + 0.01 * trial.params["method.alpha"])
    assert sorted(config.seed for config in launcher.seen[0]) == [0, 0, 1, 1, 2, 2]  # two trials fill four slots
    assert "the mean of 3 seeds" in done.out
    assert done.out.splitlines()[-1].strip().startswith("python -m kd.run -m ")
    assert done.out.splitlines()[-1].endswith("seed=0,1,2")


def test_as_many_trials_as_slots_are_asked_at_once(command, tmp_path, pretend):
    launcher = pretend(Pretended(peak_at_7, slots=4))
    assert command(*SEARCH, INTERVAL, "hydra.sweeper.n_trials=10").status == 0
    assert [len(call) for call in launcher.seen] == [4, 4, 2]


def test_settings_that_come_again_are_not_run_again(command, tmp_path, pretend):
    launcher = pretend(Pretended(lambda c: c.method.alpha))
    done = command(*SEARCH, "method.alpha=0.1,0.5", "hydra.sweeper.n_trials=8")
    assert done.status == 0
    assert len(launcher.jobs) == 2 and states(tmp_path) == [TrialState.COMPLETE] * 8
    assert "best on validation: trial" in done.out and "(8 trials, 2 different)" in done.out


def test_a_failed_trial_does_not_stop_the_search_and_is_retried(command, tmp_path, pretend):
    def broken(config):
        return None if config.method.temperature > 14 else peak_at_7(config)

    pretend(Pretended(broken))
    arguments = (*SEARCH, INTERVAL, "hydra.sweeper.n_trials=6")
    done = command(*arguments)
    assert done.status == 6
    before = trials(tmp_path)
    failed = [trial for trial in before if trial.state == TrialState.FAIL]
    assert len(before) == 6 and 0 < len(failed) < 6
    assert all(trial.params["method.temperature"] > 14 for trial in failed)
    assert done.out.count("failed with status 5") == len(failed)
    launcher = pretend(Pretended(peak_at_7))
    done = command(*arguments)
    assert done.status == 0, done.err
    assert len(launcher.jobs) == len(failed)
    after = trials(tmp_path)
    assert [trial.params for trial in after[6:]] == [trial.params for trial in failed]
    assert {trial.state for trial in after[6:]} == {TrialState.COMPLETE}
    assert {job["state"] for job in sweep_file(tmp_path)["jobs"]} == {"done"} and len(sweep_file(tmp_path)["jobs"]) == 6


def test_settings_that_do_not_fit_together_fail_alone(command, tmp_path, pretend):
    pretend(Pretended(lambda _: 0.5))  # alpha above 1 needs a beta: every value is right beside some other
    arguments = ("method.alpha=0.5,2,0.3", "method.beta=1,null,1.5", "hydra.sweeper.sampler=random")
    done = command(*SEARCH, *arguments, "hydra.sweeper.n_trials=20")
    assert done.status == 6
    refused = [t for t in trials(tmp_path) if t.params == {"method.alpha": 2, "method.beta": "null"}]
    assert refused and {trial.state for trial in refused} == {TrialState.FAIL}
    assert states(tmp_path).count(TrialState.COMPLETE) == 20 - len(refused)
    skipped = [job for job in sweep_file(tmp_path)["jobs"] if job["state"] == "skipped"]
    assert len(skipped) == 1 and "set `method.beta` too" in skipped[0]["error"]["message"]


def test_an_interrupted_search_goes_on_with_the_trial_it_was_at_and_ends_as_if_uninterrupted(
    command, tmp_path, pretend, monkeypatch
):
    arguments = (*SEARCH, INTERVAL, "method.alpha=0.1,0.5,0.9", "hydra.sweeper.n_trials=13")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    monkeypatch.chdir(whole)
    pretend(Pretended(peak_at_7))
    assert command(*arguments).status == 0
    monkeypatch.chdir(cut)
    left = iter(range(12))  # past the ten random trials

    def interrupted(config):
        if next(left) == 11:
            raise KeyboardInterrupt
        return peak_at_7(config)

    pretend(Pretended(interrupted))
    assert command(*arguments).status == 130
    assert states(cut)[11:] == [TrialState.RUNNING]
    pretend(Pretended(peak_at_7))
    done = command(*arguments)
    assert done.status == 0 and "1 cut off" in done.out
    assert [(t.params, t.value) for t in trials(cut)] == [(t.params, t.value) for t in trials(whole)]


def test_after_kill_9_the_same_command_ends_the_search(command, tmp_path):
    arguments = (*SEARCH, *QUICK, "trainer.max_epochs=15", INTERVAL, "hydra.sweeper.n_trials=2")
    process = subprocess.Popen(
        [sys.executable, "-m", "kd.run", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    started = time.monotonic()
    while not list(tmp_path.glob("outputs/digits_kd/sweep-*/temperature-*/checkpoints/*.ckpt")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() - started < 120
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    running = trials(tmp_path)
    assert running[-1].state == TrialState.RUNNING
    done = command(*arguments)
    assert done.status == 0, done.err
    after = trials(tmp_path)
    assert [trial.state for trial in after] == [TrialState.COMPLETE] * 2
    assert after[len(running) - 1].params == running[-1].params
    logs = {path.parent.name: path.read_text() for path in tmp_path.glob("outputs/digits_kd/sweep-*/*/log.txt")}
    assert "continuing after epoch" in logs[sweep_file(tmp_path)["jobs"][len(running) - 1]["name"]]


def test_a_study_of_another_space_is_refused_with_both_shown(command, tmp_path, pretend):
    launcher = pretend(Pretended(peak_at_7))
    of_yaml = "++hydra.sweeper.params={method.temperature:'interval(1,%s)'}"
    assert command(*SEARCH, of_yaml % 20, "hydra.sweeper.n_trials=2").status == 0
    done = command(*SEARCH, of_yaml % 30, "hydra.sweeper.n_trials=3")
    assert done.status == 2 and len(launcher.jobs) == 2
    assert "method.temperature: interval(1.0,20.0) in the study, interval(1.0,30.0) now" in done.err
    other = command(*SEARCH, of_yaml % 30, "hydra.sweeper.n_trials=1", "hydra.sweeper.study=wider")
    assert other.status == 0, other.err


def test_an_experiment_can_say_what_is_searched(command, tmp_path, pretend, monkeypatch):
    conf = tmp_path / "conf"
    shutil.copytree(conf_dir(), conf)
    (conf / "experiment" / "searched.yaml").write_text(
        "# @package _global_\n"
        "defaults: [digits_kd, override /hydra/sweeper: optuna, _self_]\n"
        "hydra: {sweeper: {n_trials: 3, params: {method.temperature: 'interval(6,8)', method.alpha: '0.1,0.5'}}}\n"
    )
    monkeypatch.setattr("kd.cli.conf_dir", lambda: conf)
    launcher = pretend(Pretended(peak_at_7))
    done = command("-m", "experiment=searched", "logger=csv", "method.alpha=0.3,0.4")
    assert done.status == 0, done.err
    assert len(launcher.jobs) == 3
    assert all(6 <= config.method.temperature <= 8 for config in launcher.jobs)
    assert {config.method.alpha for config in launcher.jobs} <= {0.3, 0.4}  # the command line has the last word


def test_a_study_of_other_settings_is_refused(command, tmp_path, pretend):
    pretend(Pretended(peak_at_7))
    given = (*SEARCH, INTERVAL, "hydra.sweep.dir=here", "hydra.sweeper.n_trials=1")
    assert command(*given).status == 0
    done = command(*given, "method.alpha=0.3")
    assert done.status == 2 and "configuration of what is not searched" in done.err
    done = command(*given, "seed=0,1")
    assert done.status == 2 and "seeds of a trial: that of the configuration in the study, 0, 1 now" in done.err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((INTERVAL, "data.val=0"), "no validation images"),
        ((INTERVAL, "join=true"), "a search cannot be joined"),
        ((INTERVAL, "force=true"), "hydra.sweep.dir=FOLDER"),
        (("seed=0,1",), "nothing to search"),
        ((), "nothing to search"),
        (("method.temperature=1,2", "seed=int(interval(0,5))"), "seeds are not searched"),
        (("method.temperature=interval(5,1)",), "finite a <= b, but got 5.0 and 1.0"),
        (("method.temperature=interval(1,inf)",), "finite a <= b"),
        (("method.temperature=tag(log,interval(0,1))",), "above 0, but got 0.0"),
        (("method.temperature=tag(lgo,interval(1,2))",), "unknown tag lgo. Known: log"),
        (("method.temperature=tag(log,choice(1,2))",), "has no meaning for a list"),
        (("method.temperature=shuffle(1,2)",), "shuffle has no meaning"),
        ((INTERVAL, "hydra.sweeper.n_trials=0"), "`hydra.sweeper.n_trials` to be a whole number of at least 1"),
        ((INTERVAL, "hydra.sweeper.n_trials=many"), "but got 'many'"),
        ((INTERVAL, "hydra.sweeper.sampler=tpee"), "Did you mean 'tpe'"),
        ((INTERVAL, "hydra.sweeper.sampler_seed=-1"), "hydra.sweeper.sampler_seed"),
        ((INTERVAL, "hydra.sweeper.study=5"), "`hydra.sweeper.study` to be text or null, but got 5"),
        ((INTERVAL, "hydra.sweeper.n_trial=5"), "n_trial"),
        (("method.temperature=interval(0,20)",), "`method.temperature` to be a number above 0, but got 0"),
        (("method.alpha=interval(0,1.5)",), "`method.alpha`"),
        (("method.temprature=interval(1,2)",), "Did you mean 'method.temperature'"),
        (("method=kd,kdd", INTERVAL), "kdd"),
        (("trainer.max_epochs=interval(1,5)",), "trainer.max_epochs"),
        ((INTERVAL, "student.hidden=[16],[0]"), "hidden"),
    ],
)
def test_bad_input_is_found_before_anything_runs(command, tmp_path, pretend, given, said):
    launcher = pretend(Pretended(peak_at_7))
    done = command(*SEARCH, *given)
    assert done.status == 2 and said in done.err and "Traceback" not in done.err
    assert not launcher.jobs


def test_all_mistakes_are_told_at_once(command, pretend):
    pretend(Pretended(peak_at_7))
    given = ("method.temperature=interval(0,20)", "method.alpha=2,0.5", "trainer.max_epochs=int(interval(9,2))")
    done = command(*SEARCH, *given, "hydra.sweeper.n_trials=0", "hydra.sweeper.sampler=grid")
    for said in ("`method.temperature`", "`method.alpha`", "interval(9,2)", "n_trials", "hydra.sweeper.sampler 'grid'"):
        assert said in done.err


def test_without_optuna_the_search_says_how_to_get_it(command, monkeypatch):
    monkeypatch.setattr("kd.sweep.search.find_spec", lambda _: None)
    done = command(*SEARCH, INTERVAL)
    assert done.status == 2 and "pip install optuna" in done.err


def test_a_storage_that_cannot_be_used_is_named(command, tmp_path, pretend):
    pretend(Pretended(peak_at_7))
    for storage in ("nonsense", f"sqlite:///{tmp_path}/nowhere/study.db"):
        done = command(*SEARCH, INTERVAL, f"hydra.sweeper.storage={storage}")
        assert done.status == 4 and storage in done.err and "Traceback" not in done.err


def test_a_second_process_is_told_who_searches(command, tmp_path, pretend):
    pretend(Pretended(peak_at_7))
    with owned(tmp_path / "here"):
        done = command(*SEARCH, INTERVAL, "hydra.sweep.dir=here")
    assert done.status == 2 and str(os.getpid()) in done.err and "join" not in done.err


def test_an_interval_without_a_search_is_refused(command):
    done = command("-m", INTERVAL)
    assert done.status == 2 and "hydra/sweeper=optuna" in done.err


def test_the_search_stops_when_no_network_can_be_trained(command, tmp_path, pretend):
    class Broken(Pretended):
        def run(self, tasks):
            for task in tasks:
                assert task.network, "a job was started without its teacher"
                yield Outcome(task, FAILED, 5, "training produced NaN")

    pretend(Broken(peak_at_7))
    done = command(*SEARCH, INTERVAL, "hydra.sweeper.n_trials=9")
    assert done.status == 6 and "the search stops here" in done.out
    assert states(tmp_path) == [TrialState.FAIL]
    assert sweep_file(tmp_path)["jobs"][0]["state"] == "skipped"
