"""Whatever a file from outside holds: a `StoreError` within a moment, in little memory, and nothing has been run."""

import gzip
import hashlib
import pickle
import resource
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from kd import checkpoints, cli, fork
from kd.data import published
from kd.errors import ConfigError, DataError, StoreError
from kd.foreign_weights import load_foreign
from kd.nets.by_name import timm_model
from kd.rules import check
from kd.store import META, WEIGHTS, Store, read_weights
from kd.weight_files import check_torch_file, read_header
from tests.commands import QUICK, Command
from tests.hostile_files import SAFETENSORS, TORCH, Calls, safetensors, saved, tensor

DATA = SimpleNamespace(class_names=["cat", "dog"], mean=[0.5], std=[0.25])
MEMORY = 300 * 2**20


@pytest.fixture(autouse=True)
def little_memory(monkeypatch, tmp_path):
    """No file may make the process grow by much; nor may a call in one leave its mark."""
    monkeypatch.chdir(tmp_path)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limit)
    assert not (tmp_path / "pwned").exists()


def refused(path: Path) -> str:
    network = nn.Linear(3, 2)
    before = network.weight.clone()
    with pytest.raises(StoreError) as error:
        load_foreign(network, path, DATA)
    assert torch.equal(network.weight, before)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_hostile_safetensors_file(tmp_path, name):
    path = tmp_path / "net.safetensors"
    path.write_bytes(SAFETENSORS[name])
    assert "damaged or no safetensors file" in refused(path)
    with pytest.raises(StoreError):
        read_weights(path)


@pytest.mark.parametrize("name", TORCH)
def test_a_hostile_torch_file(tmp_path, name):
    path = tmp_path / "net.pt"
    path.write_bytes(TORCH[name]())
    refused(path)
    with pytest.raises(StoreError):  # found before torch looks at it
        check_torch_file(path)


@pytest.mark.parametrize("name", TORCH)
def test_a_hostile_checkpoint_of_another_run(tmp_path, monkeypatch, name):
    """Its SHA-256 is right: whoever writes such a file can compute one."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch reads it"))
    content = TORCH[name]()
    path = tmp_path / "run" / "checkpoints" / "student.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(content + checkpoints.MARK + hashlib.sha256(content).hexdigest().encode() + b"\n")
    with pytest.raises((StoreError, ConfigError), match=r"student\.ckpt"):
        fork.find(str(tmp_path / "run"))


def test_the_environment_cannot_switch_the_check_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr("kd.foreign_weights.check_torch_file", lambda path: None)  # torch's own check stands alone
    (tmp_path / "net.pt").write_bytes(TORCH["a call of os.system"]())
    assert "holds more than weights" in refused(tmp_path / "net.pt")


def test_files_that_mean_no_harm_pass(tmp_path):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for old in (False, True):
        for content in (network.state_dict(), {"model": dict(network.named_parameters()), "epoch": 3, "acc": 0.5}):
            (tmp_path / "net.pt").write_bytes(saved(content, old=old))
            check_torch_file(tmp_path / "net.pt")
    content = safetensors({"a": tensor(0, 4, [1]), "b": tensor(4, 4, [0]), "__metadata__": {"by": "me"}}, bytes(4))
    (tmp_path / "net.safetensors").write_bytes(content)
    assert set(read_header(tmp_path / "net.safetensors")) == {"a", "b", "__metadata__"}


@pytest.mark.parametrize(
    "weight, words",
    [
        (torch.full((2, 3), torch.nan), "NaN or infinity"),
        (torch.ones(2, 3).to_sparse(), "more than weights"),
        (torch.ones(2, 3, dtype=torch.int64), "expected plain"),
        (torch.ones(2, 3, dtype=torch.complex64), "expected plain"),
        (torch.ones(2, 3, device="meta"), ""),
        (torch.ones(1).expand(10**12, 3), "shape"),
    ],
)
def test_tensors_that_are_no_weights(tmp_path, weight, words):
    (tmp_path / "net.pt").write_bytes(saved({"weight": weight, "bias": torch.zeros(2)}))
    assert words in refused(tmp_path / "net.pt")


# --- what a torch file says beside its weights ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said, words",
    [
        ({"classes": ["dog", "cat"]}, "classes (in this order)"),
        ({"class_names": ["dog", "cat"]}, "classes (in this order)"),
        ({"class_to_idx": {"cat": 1, "dog": 0}}, "classes (in this order)"),
        ({"mean": [0.1]}, "normalisation mean"),
        ({"std": [0.1]}, "normalisation std"),
    ],
)
def test_a_torch_file_of_other_data_is_refused(tmp_path, said, words):
    state = nn.Linear(3, 2).state_dict()
    (tmp_path / "net.pt").write_bytes(saved({"state_dict": state, **said}))
    assert words in refused(tmp_path / "net.pt")
    right = {"state_dict": state, "class_to_idx": {"dog": 1, "cat": 0}, "mean": [0.5], "std": [0.25]}
    (tmp_path / "net.pt").write_bytes(saved(right))
    assert load_foreign(nn.Linear(3, 2), tmp_path / "net.pt", DATA) == []


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["../x", "a/b", "/etc", "..", ".", "", ".hidden", "a\n", "a\0b", "a b", "~"])
def test_a_key_cannot_lead_out_of_the_store(tmp_path, key):
    store = Store(tmp_path / "store")
    for attempt in (lambda: store.get(key), lambda: store.put(key, nn.Linear(1, 1), {})):
        with pytest.raises(StoreError, match="is no key of the store"):
            attempt()


@pytest.mark.parametrize("name", ["", WEIGHTS, META, "metrics.csv"])
def test_a_link_in_the_store_is_refused(tmp_path, name):
    store = Store(tmp_path / "store")
    elsewhere = Store(tmp_path / "elsewhere").put("key", nn.Linear(1, 1), {}).folder
    place = store.put("key", nn.Linear(1, 1), {}).folder / name
    (elsewhere / "metrics.csv").touch()
    if name:
        place.unlink(missing_ok=True)
    else:
        place.rename(tmp_path / "moved")
    place.symlink_to(elsewhere / name)
    with pytest.raises(StoreError, match="is a symbolic link to"):
        store.get("key")


def test_the_whole_store_may_be_a_link(tmp_path):
    real = Store(tmp_path / "real")
    real.put("key", nn.Linear(1, 1), {})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert Store(tmp_path / "link").get("key").weights()


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "null", '{"sha256": 3}', "9" * 10_000])
def test_a_description_that_is_none(tmp_path, content):
    entry = Store(tmp_path).put("key", nn.Linear(1, 1), {})
    (entry.folder / META).write_text(content)
    with pytest.raises(StoreError, match="cannot be read"):
        Store(tmp_path).get("key")


# --- data -------------------------------------------------------------------------------------------------------------


def test_code_in_a_file_of_cifar_is_not_run_even_if_it_passes_for_checked(tmp_path):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": Calls(exec, "open('pwned', 'w')"), "labels": [1]}, 2))
    with pytest.raises(DataError, match="it calls"):
        published._unpickle(path)


def test_an_archive_that_inflates_is_no_dataset(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(1024):
            file.write(bytes(2**20))
    begun = time.monotonic()
    with pytest.raises(DataError, match="IDX"):
        published.read_idx(path)
    assert time.monotonic() - begun < 60


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../etc", "/tmp/x", "a/b", ".hidden", "", "a" * 101, "a\0", "-rf"])
def test_an_experiment_is_a_name_and_no_path(name):
    for key in ("experiment", "logger.project"):
        config = cli.compose([])
        OmegaConf.update(config, key, name)
        with pytest.raises(ConfigError, match=rf"`{key}` to be a name of at most 100 letters, digits"):
            check(config)


def test_a_configuration_file_cannot_name_a_folder_elsewhere(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    folder = command.quick("model@student=mlp_16", "model@teacher.model=mlp_16")
    text = (folder / "config.yaml").read_text()
    assert "experiment: digits_kd" in text
    (folder / "config.yaml").write_text(text.replace("experiment: digits_kd", "experiment: ../../outside"))
    done = command("--config-dir", str(folder), "--config-name", "config")
    assert done.status == 2
    assert "`experiment`" in done.err


def test_weights_for_timm_come_by_the_checked_way():
    for option in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"):
        with pytest.raises(ConfigError, match=r"teacher\.path=FILE"):
            timm_model("resnet18", 10, (3, 32, 32), **{option: "x"})


# --- secrets ----------------------------------------------------------------------------------------------------------

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def login(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY[::-1]}\n")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.usefixtures("login")
@pytest.mark.parametrize(
    "override, where",
    [
        ("logger.entity=${oc.env:WANDB_API_KEY}", "`logger.entity`"),
        (f"logger.entity={KEY}", "`logger.entity`"),
        (f"logger.tags=[a,{KEY}]", "`logger.tags`"),
        (f"+logger.api_key={KEY}", "`+logger.api_key`"),
        (f"+{KEY}=1", "Word"),
        (f"{KEY}", "Word"),
        (f"logger.entity=x{KEY[::-1]}x", "`logger.entity`"),
        ("logger.entity=hf_abcdefghijklmnopqrstuvwxyz0123456789", "`logger.entity`"),
        ("method.name=${oc.env:WANDB_API_KEY}", "`method.name`"),
        ("+student.x={a: {b: '${oc.env:WANDB_API_KEY}'}}", "`student.x.a.b`"),
    ],
)
def test_a_key_in_the_command_is_refused_and_not_repeated(tmp_path, monkeypatch, capsys, override, where):
    command = Command(tmp_path, monkeypatch, capsys)
    for sweep in ((), ("-m",)):
        done = command(*QUICK, *sweep, override)
        assert done.status == 2
        assert where in done.err
        written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "netrc"]
        for text in (done.out.encode(), done.err.encode(), *written):
            assert not any(secret.encode() in text for secret in (KEY, KEY[::-1], "hf_abc"))


@pytest.mark.usefixtures("login")
def test_a_run_with_a_login_writes_no_key_down(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = Command(tmp_path, monkeypatch, capsys)
    small = ("model@student=mlp_16", "model@teacher.model=mlp_16", "trainer.max_epochs=1")
    done = command(*QUICK, *small, "logger=wandb")
    assert done.status == 0, done.err
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "netrc"]
    assert {"config.yaml", "result.json", "report.html", "metrics.csv"} <= {path.name for path in files}
    assert [path for path in files if path.suffix == ".wandb"]
    for text in (done.out.encode(), done.err.encode(), *(path.read_bytes() for path in files)):
        assert KEY.encode() not in text and KEY[::-1].encode() not in text
