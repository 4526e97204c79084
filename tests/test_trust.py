"""Which code a configuration may name: nothing else is imported, let alone called, wherever the name stands."""

import functools
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kd import hydra_guard, trust
from kd.data import Digits
from kd.errors import ConfigError
from tests.commands import QUICK, Command

EVIL = """
import pathlib
pathlib.Path("pwned").touch()
from os import system
from torch import nn

def run(*given, **named):
    pathlib.Path("pwned").touch()

class Net(nn.Linear):
    def __init__(self, num_classes, image_shape, **_):
        super().__init__(64, num_classes)

    def forward(self, image):
        return super().forward(image.flatten(1))
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Command:
    """A folder with a module in it that leaves a file behind when it is imported."""
    monkeypatch.delenv("KD_TRUST", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    yield Command(tmp_path, monkeypatch, capsys)
    sys.modules.pop("evil", None)


def pwned(command: Command) -> bool:
    return (command.folder / "pwned").exists() or "evil" in sys.modules


@pytest.mark.parametrize(
    "override",
    [
        "student._target_=evil.run",
        "teacher.model._target_=evil.run",
        "data._target_=evil.run",
        "method.terms.kd._target_=evil.run",
        "optim.optimizer._target_=evil.run",
        "optim.schedule._target_=evil.run",
        "+student.x={_target_: evil.run}",
        "+student.x=[[{a: {_target_: evil.run}}]]",
        "+teacher.optim={optimizer: {_target_: evil.run}, schedule: {}}",
        "+hydra.callbacks.x={_target_: evil.run}",
        "+hydra.launcher.x={_target_: evil.run}",
        """+student.x='${oc.create:"{_target_: evil.run}"}'""",
        """+student.x='\\\\${oc.create:"{_target_: evil.run}"}'""",
        "student._target_=${oc.decode:evil.run}",
    ],
)
def test_code_of_others_is_neither_called_nor_imported(command, override):
    done = command(*QUICK, override)
    assert done.status == 2, done
    assert not pwned(command)
    assert "_target_`='evil.run'" in done.err or "Unknown key" in done.err


@pytest.mark.parametrize(
    "content",
    [
        "hydra: {callbacks: {x: {_target_: evil.run}}}",
        "hydra: {launcher: {_target_: evil.run}}",
        "hydra: {mode: MULTIRUN, sweeper: {_target_: evil.run}}",
        "hydra: {job_logging: {handlers: {x: {(): evil.run}}, root: {handlers: [x]}}}",
        "hydra: {hydra_logging: {handlers: {x: {class: evil.run}}, root: {handlers: [x]}}}",
        "hydra: {job: {env_set: {KD_TRUST: evil}}}",
        "hydra: {callbacks: {x: {_target_: os.system, command: touch pwned}}}",
        "hydra: {job_logging: {handlers: {x: {class: logging.StreamHandler, stream: 'ext://evil.run'}}}}",
        "hydra: {hydra_logging: {handlers: {x: {class: logging.FileHandler, filename: pwned}}, root: {handlers: [x]}}}",
        "hydra: {searchpath: ['pkg://evil']}",
        "hydra: {mode: MULTIRUN, launcher: {_target_: kd.sweep.slurm.SlurmLauncher, setup: [touch pwned]}}",
        "hydra: {callbacks: {x: '${oc.create:\"{_target_: evil.run}\"}'}}",
        "{x: {env_set: {KD_TRUST: evil}}, hydra: {job: '${x}'}}",
        "{x: {handlers: {x: {(): evil.run}}, root: {handlers: [x]}}, hydra: {job_logging: '${x}'}}",
        "{x: {callbacks: {x: {_target_: evil.run}}}, hydra: '${x}'}",
        "hydra: {mode: MULTIRUN, launcher: {_target_: kd.sweep.ray.RayLauncher, address: 'evil:6379'}}",
        "x: !!python/object/apply:os.system ['touch pwned']",
        "x: !!python/name:evil.run",
        "x: !!python/module:evil",
        "student: {_target_: evil.run}",
        "student: {_target_: os.system, command: touch pwned}",
        "student: {_target_: builtins.eval}",
    ],
)
def test_a_configuration_file_from_outside_runs_no_code(command, content):
    (command.folder / "given").mkdir()
    (command.folder / "given" / "config.yaml").write_text(content + "\n")
    done = command("--config-dir", "given", "--config-name", "config")
    assert done.status == 2, done
    assert done.err.startswith("Error: ")
    assert not pwned(command)


@pytest.mark.parametrize("option", [["--experimental-rerun", "job.pickle"], ["--exp=job.pickle"]])
def test_no_pickle_of_a_job_is_read(command, option):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (command.folder / "pwned",))

    for name in ("job.pickle", "hydra.pickle"):
        (command.folder / name).write_bytes(pickle.dumps(Hostile()))
    done = command(*option)
    assert done.status == 2
    assert "would read a pickle" in done.err and "--config-dir FOLDER" in done.err
    assert not pwned(command)


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(["a0: &a0 [0]", *(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]" for n in range(12))]),
        "a: &a [*a]",
        "a: &a {<<: *a}",
    ],
)
def test_aliases_that_stand_for_terabytes_are_refused_before_they_are_followed(command, content):
    (command.folder / "given").mkdir()
    (command.folder / "given" / "config.yaml").write_text(content + "\n")
    done = command("--config-dir", "given", "--config-name", "config")
    assert done.status == 2
    assert "A configuration file cannot be read" in done.err and "alias" in done.err


@pytest.mark.parametrize(
    ("key", "value"),
    [("setup", ["module load cuda"]), ("additional_parameters", {"mail-type": "FAIL"}), ("address", "auto")],
)
def test_lines_of_shell_and_another_machines_ray_may_be_typed(key, value):
    given = {"launcher": {"_target_": "kd.sweep.slurm.SlurmLauncher", key: value}}
    hydra_guard.check({**given, "overrides": {"hydra": [f"+hydra.launcher.{key}={value}"]}})
    for others in ([], [f"hydra.launcher.partition=hydra.launcher.{key}"], [f"hydra.launcher.{key}.more=1"]):
        with pytest.raises(ConfigError, match=f"`hydra.launcher.{key}` .* comes from a file"):
            hydra_guard.check({**given, "overrides": {"hydra": others}})


@pytest.mark.parametrize(
    "given",
    [
        {"_target_": "timm.create_model", "model_name": "resnet18", "checkpoint_path": "evil.pt"},
        {"_target_": "timm.create_model", "_args_": ["resnet18", False, None, None, "evil.pt"]},
        {"_target_": "timm.create_model", "model_name": "local-dir:evil", "pretrained": True},
        {"_target_": "timm.create_model", "_args_": ["hf-hub:evil/net"], "_partial_": True},
        {"_target_": "timm.models.resnet18", "pretrained": True, "pretrained_cfg": {"file": "evil.pt"}},
    ],
)
def test_timm_reads_no_files_of_weights(given):
    with pytest.raises(ConfigError, match="weights for timm to read"):
        trust.build("student", given)


def test_a_repeated_run_with_foreign_code_in_its_configuration_is_refused(command):
    folder = command.quick("model@student=mlp_16", "model@teacher.model=mlp_16")
    text = (folder / "config.yaml").read_text()
    assert "kd.nets.mlp.MLP" in text
    (folder / "config.yaml").write_text(text.replace("kd.nets.mlp.MLP", "evil.Net"))
    done = command("--config-dir", str(folder), "--config-name", "config")
    assert done.status == 2
    assert "KD_TRUST=evil python -m kd.run" in done.err
    assert not pwned(command)


def test_the_users_own_package_is_used_once_it_is_named(command, monkeypatch):
    student = ("student._target_=evil.Net", "model@teacher.model=mlp_16")
    assert command(*QUICK, *student).status == 2
    monkeypatch.setenv("KD_TRUST", "another, evil")
    assert command(*QUICK, *student).status == 0
    assert pwned(command)


@pytest.mark.parametrize(
    "name",
    [
        "evil.system",  # a trusted package, but not its own code
        "evil.pathlib.Path",
        "kd.losses.kd.torch.hub.load",
        "kd.data.published.pickle.load",
        "kd.data.published.Path",
        "kd.data.images.integer",
        "kd.losses.configure.build_objective",
        "torch.nn.Module.load_state_dict",
        "torch.nn.functional.relu",
        "torch.nn.modules.module.Module.eval",
        "torch.nn.Module.__init__",
        "torch.nn.Module.__init__.__globals__",
        "torch.optim.lr_scheduler.warnings.warn",
        "torchvision.models.get_model",
        "torchvision.models._api.get_model",
        "torchvision.models.vgg.load_state_dict_from_url",
        "torchvision.transforms.functional.Image.open",
        "timm.models.load_checkpoint",
        "timm.models.load_state_dict",
        "timm.models.hub.load_state_dict_from_hf",
        "timm.models.helpers.torch.load",
        "torch.load",
        "torch.hub.load",
        "torch.nnx.Linear",
        "kd.files.write_json",
        "kd.launch.launch",
        "kd.build.data",
        "builtins.eval",
        "os.system",
        "subprocess.Popen",
        "eval",
        "torch.nn",
        "torch.nn.",
        ".torch.nn.Linear",
        "torch.nn.Linear\n",
        "torch.nn.${oc.env:HOME}",
        "",
        None,
        7,
        ["torch.nn.Linear"],
    ],
)
def test_what_a_path_leads_to_counts_and_not_how_it_begins(command, monkeypatch, name):
    monkeypatch.setenv("KD_TRUST", "evil")
    with pytest.raises(ConfigError, match="student"):
        trust.resolve("student", name)


@pytest.mark.parametrize(
    "name",
    [
        "kd.data.Digits",
        "kd.nets.mlp.MLP",
        "kd.nets.by_name.timm_model",
        "kd.losses.kd.KD",
        "kd.losses.simkd.ReusedClassifier",
        "kd.optim.with_max_norm",
        "torch.nn.Linear",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.StepLR",
        "torchvision.models.resnet18",
        "torchvision.transforms.Normalize",
        "torchvision.transforms.v2.RandomCrop",
        "timm.create_model",
        "timm.models.resnet18",
    ],
)
def test_the_parts_of_a_run_may_be_named(name):
    assert callable(trust.resolve("student", name))


def test_what_is_built_is_what_hydra_would_build():
    head = {"_target_": "torch.nn.Linear", "_args_": [4, 3], "bias": False}
    network = trust.build(
        "student", {"_target_": "torch.nn.Sequential", "_args_": [head, {"_target_": "torch.nn.ReLU"}]}
    )
    assert isinstance(network, nn.Sequential)
    assert [type(layer) for layer in network] == [nn.Linear, nn.ReLU]
    assert network[0].weight.shape == (3, 4) and network[0].bias is None
    inner = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}
    made = trust.build(
        "optim", {"_target_": "kd.optim.with_max_norm", "_partial_": True, "optimizer": inner, "max_norm": 1}
    )
    assert isinstance(made, functools.partial)
    assert made([torch.zeros(2, 2, requires_grad=True)]).param_groups[0]["lr"] == 0.5
    assert trust.build("x", {"a": [1, {"b": "torch.nn.Linear"}]}) == {"a": [1, {"b": "torch.nn.Linear"}]}


def test_an_interpolation_that_is_left_in_a_value_stays_text():
    left = {"x": '${oc.create:"{_target_: os.getcwd}"}'}
    assert trust.build("student", left) == left


def test_an_unknown_special_key_is_said():
    with pytest.raises(ConfigError, match=r"Unknown key `student[.]_recursive_`"):
        trust.build("student", {"_target_": "torch.nn.ReLU", "_recursive_": False})


def test_every_file_of_ours_passes():
    conf = Path(__file__).parents[1] / "conf"
    named = {
        line.split("_target_:")[1].split(",")[0].strip(" }")
        for path in conf.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if "_target_:" in line and "???" not in line
    }
    assert len(named) > 50
    for name in named - set(sum(hydra_guard.OF_HYDRA.values(), ())):
        assert trust.resolve("conf", name)
    assert trust.resolve("data", "kd.data.Digits") is Digits
