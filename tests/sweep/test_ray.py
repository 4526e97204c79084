"""`hydra/launcher=ray` on this machine: two slots of a Ray that is started for the sweep."""

import json
import sys

import pytest

from kd.errors import ConfigError
from kd.sweep import ray_session, work
from kd.sweep.ray import RayLauncher
from kd.sweep.task import DONE, FAILED
from tests.sweep.ray_tasks import alive, by_value, most_at_once, notes, probe, tasks, wait_until

needs_ray = pytest.mark.skipif(ray_session.find_spec("ray") is None, reason="needs the package ray")


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))  # or Ray leaves one in the user's home
        patch.setenv("RAY_ADDRESS", "192.0.2.1:1")  # of a cluster that is not asked for
        by_value()
        launcher = RayLauncher(tmp_path_factory.mktemp("sweep"), slots=2, cpus_per_job=3)
        yield launcher
        launcher.close()


@pytest.fixture
def probed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "perform", probe)


@needs_ray
def test_slots_are_filled_from_a_lazy_list_and_workers_are_reused(launcher, probed, tmp_path):
    given, ended = [], []

    def coming():
        for task in tasks(tmp_path, 5):
            assert len(given) - len(ended) < 2, "taken before it could be started"
            given.append(task)
            yield task

    for outcome in launcher.run(coming()):
        ended.append(outcome)
    assert launcher.slots() == 2
    assert [outcome.state for outcome in ended] == [DONE] * 5
    assert {outcome.task.name for outcome in ended} == {task.name for task in given}
    found = notes(tmp_path)
    assert most_at_once(found) == 2
    assert len({note["pid"] for note in found}) == 2
    assert {note["cwd"] for note in found} == {str(tmp_path)}
    assert {note["OMP_NUM_THREADS"] for note in found} == {"3"}
    assert {note["CUDA_VISIBLE_DEVICES"] for note in found} == {""}


@needs_ray
def test_a_killed_worker_and_a_stumbling_one_fail_alone(launcher, probed, tmp_path, capfd):
    given = tasks(tmp_path, 5)
    given[1].config["dies"] = True
    given[3].config["raises"] = True
    outcomes = {outcome.task.name: outcome for outcome in launcher.run(given)}
    killed, stumbled = outcomes.pop("job-1"), outcomes.pop("job-3")
    assert [outcome.state for outcome in outcomes.values()] == [DONE] * 3
    assert (killed.state, killed.status) == (stumbled.state, stumbled.status) == (FAILED, 1)
    assert "on here, since now) is gone: killed (kill -9" in killed.error
    assert "job-1/log.txt" in killed.error
    assert "RuntimeError: this was not foreseen" in stumbled.error
    assert not list(tmp_path.glob("*.mark"))
    assert "".join(capfd.readouterr()) == ""  # Ray has much to say about a dead worker


@needs_ray
def test_leaving_early_ends_the_workers(launcher, probed, tmp_path):
    given = tasks(tmp_path, 4, sleep=60)
    given[0].config["sleep"] = 0
    outcomes = launcher.run(given)
    assert next(outcomes).task.name == "job-0"
    wait_until(given[1].mark.exists)
    pid = json.loads(given[1].mark.read_text())["pid"]
    assert alive(pid)
    outcomes.close()
    wait_until(lambda: not alive(pid))
    assert not list(tmp_path.glob("*.mark"))
    assert len(notes(tmp_path)) == 1


@needs_ray
def test_more_gpu_slots_than_gpus_are_refused(launcher, monkeypatch, tmp_path):
    monkeypatch.setattr(launcher._open[0], "offer", lambda: ray_session.Offer(0, 4, 4))
    for given, words in [
        ({"slots": 8, "gpus_per_job": 1}, "more than the 4 GPUs of this machine can hold: 4"),
        ({"slots": 8, "gpus_per_job": 0.6}, "more than the 4 GPUs of this machine can hold: 4"),
        ({"gpus_per_job": 5}, "gpus_per_job=5 asks for 5 GPUs, but Ray has 4 GPUs on one machine"),
    ]:
        with pytest.raises(ConfigError, match=words):
            RayLauncher(tmp_path, **given)._share(launcher._open[0])
    for given, slots in [({}, 4), ({"gpus_per_job": 0.5}, 8), ({"gpus_per_job": 2}, 2), ({"slots": 3}, 3)]:
        assert RayLauncher(tmp_path, **given)._share(launcher._open[0]).slots == slots


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"slots": 0}, "`hydra.launcher.slots` to be a whole number of at least 1, but got 0"),
        ({"slots": "two"}, "but got 'two'"),
        ({"cpus_per_job": 0}, "`hydra.launcher.cpus_per_job`"),
        ({"gpus_per_job": -1}, "`hydra.launcher.gpus_per_job`"),
        ({"gpus_per_job": 1.5}, "a fraction of one GPU or a whole number of GPUs, but got 1.5"),
    ],
)
def test_bad_settings_are_refused_before_anything_starts(tmp_path, given, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        RayLauncher(tmp_path, **given)


@needs_ray
@pytest.mark.parametrize(
    ("address", "words"),
    [
        (6379, "auto or HOST:PORT, but got '6379'"),
        ("ray://head:10001", "auto or HOST:PORT, but got 'ray://head:10001'"),
        (
            "127.0.0.1:9",
            "Cannot use a Ray cluster at hydra.launcher.address=127.0.0.1:9 (.*Connection refused.*). Start",
        ),
    ],
)
def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path, address, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace(")", r"\)")):
        next(RayLauncher(tmp_path, address=address).run([]))


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(ray_session, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "kd\[ray\]"'):
        RayLauncher(tmp_path)
