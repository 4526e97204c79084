"""Which jobs a sweep has, and that each has the configuration that its command alone would have."""

import json
import shutil
from dataclasses import asdict

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException

from kd import cli
from kd.errors import ConfigError
from kd.schema import restored
from kd.sweep.plan import Composer, Job, grid, read_arguments
from kd.sweep.record import in_words
from kd.sweep.rehearsal import covering
from tests.commands import configured


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def jobs(*given: str) -> list[Job]:
    arguments = read_arguments(["-m", *given])
    return Composer(arguments).jobs(grid(arguments))


@pytest.mark.parametrize(
    "given",
    [
        ("method.temperature=1,2.5,8", "method.alpha=0.1,1", "seed=0,1"),  # an int where a float stands
        ("experiment=cifar_kd,mnist_hinton", "seed=3,1", "trainer.max_epochs=2,null"),  # groups; a value of no type
        ("method=kd,dkd", "seed=range(0,3)"),
        ("model@student=mlp,mlp_16", "optim.optimizer.lr=0.1,0.01", "++optim.optimizer.weight_decay=0,0.1"),
        ("student.hidden=[16],[32,16]", "data.omit=[],[3]", "baseline={label_smoothing:0.1},{}"),
        ("teacher.seed=1,2", "teacher.model=${student}", "student.hidden=[8],[9]"),  # one setting follows another
        ("teacher.seed=5,${seed}", "seed=0,1"),  # a value that follows another axis
        ("experiment=mnist_kd", "~claim", "seed=choice(4,5)", "logger.project=a"),
    ],
    ids=lambda given: given[0],
)
def test_a_job_has_the_configuration_of_its_own_command(given):
    if "trainer.max_epochs=2,null" in given:
        given = (given[0], given[1], "trainer.threads=2,null")
    found = jobs(*given)
    fixed = read_arguments(["-m", *given]).fixed
    assert len({job.digest for job in found}) == len(found) > 1
    for job in found:
        assert asdict(job.config) == asdict(configured(*fixed, *job.overrides)), job.overrides


def test_the_combinations_are_all_and_in_order():
    found = jobs("method.temperature=1,4", "seed=0,1")
    assert [in_words(job.overrides) for job in found] == [
        "temperature=1 seed=0", "temperature=1 seed=1", "temperature=4 seed=0", "temperature=4 seed=1",
    ]  # fmt: skip
    assert [(job.config.method.temperature, job.config.seed) for job in found] == [(1, 0), (1, 1), (4, 0), (4, 1)]
    assert all(job.name.startswith(in_words(job.overrides).replace("=", "-").replace(" ", "_")) for job in found)


def test_a_glob_takes_all_choices_and_many_names_make_no_name_too_long():
    arguments = read_arguments(["-m", "experiment=glob(*,exclude=_*)"])
    (axis,) = arguments.axes
    names = [path.stem for path in (cli.conf_dir() / "experiment").glob("[!_]*.yaml")]
    assert sorted(axis.overrides) == sorted(f"experiment={name}" for name in names)
    arguments.folder.mkdir(parents=True)


def test_experiments_are_swept_by_a_process_that_has_composed_nothing_before(monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    found = jobs("experiment=digits_kd,mnist_kd")
    assert [job.config.experiment for job in found] == ["digits_kd", "mnist_kd"]


def test_one_job_without_any_axis():
    (job,) = jobs("seed=3")
    assert (job.words, job.config.seed) == ("default", 3)


def test_the_same_configuration_written_twice_is_one_job():
    assert len(jobs("seed=0,1,0", "method.temperature=4,4.0")) == 2


def test_the_folder_follows_from_the_jobs_and_not_from_where_they_run():
    folder = read_arguments(["-m", "seed=0,1", "method.alpha=0.5"]).folder
    assert folder.parent.name == "digits_kd"
    others = (
        "hydra.launcher._target_=kd.sweep.ray.RayLauncher",
        "store.root=/x",
        "logger=csv",
        "join=true",
        "data.root=/data",
        "latency=false",
    )
    for other in others:
        assert read_arguments(["-m", other, "method.alpha=0.5", "seed=0,1"]).folder == folder
    assert read_arguments(["-m", "seed=0,2", "method.alpha=0.5"]).folder != folder
    assert read_arguments(["-m", "seed=0,1", "method.alpha=0.5", "debug=smoke"]).folder != folder
    assert read_arguments(["-m", "seed=0,1", "hydra.sweep.dir=mine"]).folder.name == "mine"
    assert read_arguments(["-m", "experiment=mnist_kd,mnist_hinton"]).folder.parent.name == "mnist_kd+mnist_hinton"


def test_parameters_from_the_configuration_are_swept_and_give_way_to_the_command(tmp_path, monkeypatch):
    shutil.copytree(cli.conf_dir(), tmp_path / "conf")
    text = """# @package _global_
hydra:
  sweeper:
    params:
      method.temperature: 2,8
      seed: 5,6
"""
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
    monkeypatch.setattr(cli, "conf_dir", lambda: tmp_path / "conf")
    found = jobs("experiment=mine", "seed=1")
    assert [(job.config.method.temperature, job.config.seed) for job in found] == [(2, 1), (8, 1)]


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as raised:
        jobs("method.temperature=4,0,-1", "method.alpha=0.5,2", "seed=0,1")
    text = str(raised.value)
    assert text.startswith("10 of 12 jobs cannot run, so none was started:")
    assert "got 0" in text and "got -1" in text and "got 2" in text
    assert "temperature=0 method.alpha=0.5 seed=0 and 3 more" in text


def test_an_unknown_choice_or_key_is_told_like_that_of_a_run():
    with pytest.raises(ConfigError, match=r"1 of 2 jobs cannot run, .*\n  method=nonsense: Unknown method 'nonsense'"):
        jobs("method=kd,nonsense")
    with pytest.raises(HydraException, match="temprature"):
        jobs("method.temprature=1,2")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--config-dir", "seed=0,1"], "A sweep takes"),
        (["hydra.sweep.subdir=x", "seed=0,1"], "hydra.sweep.subdir"),
        (["hydra.run.dir=x", "seed=0,1"], "which hydra.sweep.dir names"),
        (["seed=0,1", "seed=0"], "seed is given twice: seed=0,1 and seed=0"),
        (["seed=2", "seed=0,1"], "given twice"),
        (["++seed=0,1", "seed=2,3"], "given twice"),
        (["logger.project=a,b", "seed=0,1"], "logger.project decides no result"),
        (["data.root=a,b"], "data.root decides no result"),
        (["method.alpha=interval(0,1)"], "hydra/sweeper=optuna"),
        (["seed=range(1,1)"], "no value"),
        (["trainer=ddp", "trainer.devices=1,2"], "decides no result"),
    ],
)
def test_what_a_sweep_cannot_take_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        jobs(*given)


def test_the_covering_jobs_have_every_combination_of_groups_and_every_value():
    arguments = read_arguments(
        ["-m", "method=kd,dkd", "method.temperature=1,2,4", "optim.optimizer.lr=0.1,1", "seed=0,1,2"]
    )
    found = Composer(arguments).jobs(grid(arguments))
    chosen = covering(arguments, found)
    assert len(found) == 36
    assert len(chosen) <= 8
    for method in ("method=kd", "method=dkd"):
        of_method = {override for job in chosen if method in job.overrides for override in job.overrides}
        assert {f"method.temperature={t}" for t in (1, 2, 4)} | {
            "optim.optimizer.lr=0.1",
            "optim.optimizer.lr=1",
        } <= of_method


@pytest.mark.parametrize("experiment", sorted(path.stem for path in cli.conf_dir().glob("experiment/[a-z]*.yaml")))
def test_a_worker_has_the_checked_configuration_from_its_plain_form(experiment):
    for method in ("kd", "fitnets"):
        config = configured(f"experiment={experiment}", f"method={method}")
        assert restored(json.loads(json.dumps(asdict(config)))) == config


def test_two_jobs_of_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr("kd.folder.config_hash", lambda config: "00000000")
    with pytest.raises(ConfigError, match=r"\n  seed=1: it has the same hash as seed=0 by chance"):
        jobs("seed=0,1")
