"""Weights from elsewhere: what fits is loaded, what does not is refused by name, and nothing is executed."""

import collections
import copy
import os
import pickle
import random
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kd.errors import StoreError
from kd.foreign_weights import load_foreign
from kd.store import Store, save_weights

DATA = SimpleNamespace(class_names=["cat", "dog", "owl"], mean=[0.5], std=[0.25])
ALL = ["class_names", "mean", "std"]


def network(classes=3):
    return nn.Sequential(
        collections.OrderedDict(fc=nn.Linear(4, 6), norm=nn.BatchNorm1d(6), head=nn.Linear(6, classes))
    )


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def refused(path, *words, data=DATA, into=None):
    """Loading must fail, say all these words, and leave the network as it was."""
    into = into or network()
    before = copy.deepcopy(into)
    with pytest.raises(StoreError) as error:
        load_foreign(into, path, data)
    assert error.value.status == 4
    for word in (str(path), *words):
        assert word in str(error.value)
    assert same(into, before)


# --- what fits --------------------------------------------------------------------------------------------------------


def test_weights_from_the_store(tmp_path):
    original, loaded = network(), network()
    entry = Store(tmp_path).put("key", original, vars(DATA))
    assert load_foreign(loaded, entry.folder / "weights.safetensors", DATA) == []
    assert same(loaded, original)


def test_bare_safetensors_say_nothing_about_their_data(tmp_path):
    original, loaded = network(), network()
    save_file(original.state_dict(), tmp_path / "bare.safetensors")
    assert load_foreign(loaded, tmp_path / "bare.safetensors", DATA) == ALL
    assert same(loaded, original)


def test_safetensors_with_someone_else_s_remarks(tmp_path):
    save_file(network().state_dict(), tmp_path / "other.safetensors", {"format": "pt", "author": "someone {"})
    assert load_foreign(network(), tmp_path / "other.safetensors", DATA) == ALL


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


WRAPPED = {
    "bare": lambda state: state,
    "ordered": collections.OrderedDict,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "net in state_dict": lambda state: {"net": state, "acc": 93.1},
    "DataParallel": lambda state: prefixed(state, "module."),
    "DataParallel, nested": lambda state: {"state_dict": prefixed(state, "module.")},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_a_torch_file(tmp_path, wrap, suffix):
    original, loaded = network(), network()
    torch.save(wrap(original.state_dict()), tmp_path / f"net{suffix}")
    assert load_foreign(loaded, tmp_path / f"net{suffix}", DATA) == ALL
    assert same(loaded, original)


def test_safetensors_of_a_wrapped_network(tmp_path):
    original, loaded = network(), network()
    save_file(prefixed(original.state_dict(), "module."), tmp_path / "net.safetensors")
    load_foreign(loaded, tmp_path / "net.safetensors", DATA)
    assert same(loaded, original)


def test_a_network_with_a_part_called_module(tmp_path):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 3)

    original, loaded = Holder(), Holder()
    torch.save(original.state_dict(), tmp_path / "net.pt")
    load_foreign(loaded, tmp_path / "net.pt", DATA)
    assert same(loaded, original)


def test_a_torch_file_of_the_old_format(tmp_path):
    original, loaded = network(), network()
    torch.save(original.state_dict(), tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    load_foreign(loaded, tmp_path / "net.pt", DATA)
    assert same(loaded, original)


def test_constants_that_were_rounded_otherwise(tmp_path):
    """Published constants come with three to five digits."""
    save_weights(network(), tmp_path / "net.safetensors", vars(DATA) | {"mean": [0.50004]})
    assert load_foreign(network(), tmp_path / "net.safetensors", DATA) == []


def test_data_that_are_not_normalised_here(tmp_path):
    save_weights(network(), tmp_path / "net.safetensors", vars(DATA) | {"mean": None, "std": None})
    assert load_foreign(network(), tmp_path / "net.safetensors", DATA) == ["mean", "std"]


# --- what does not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors"])
def test_missing(tmp_path, name):
    refused(tmp_path / name, "teacher.path", "no such file")


def test_a_folder(tmp_path):
    refused(tmp_path, "teacher.path", "is a folder", str(tmp_path / "student.safetensors"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 100, -1, -40])
def test_cut_off(tmp_path, suffix, keep):
    path = tmp_path / f"net{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "damaged")


def test_whatever_bytes_are_refused_as_damaged(tmp_path):
    """Torch's unpickler raises every kind of error on damaged bytes; none of them may reach the user as it is."""
    torch.save(network().state_dict(), tmp_path / "net.pt", _use_new_zipfile_serialization=False)
    whole, path = (tmp_path / "net.pt").read_bytes(), tmp_path / "broken.pt"
    draw = random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(4):
            content[draw.randrange(300)] = draw.randrange(256)
        path.write_bytes(bytes(content))
        with pytest.raises(StoreError, match="damaged"):
            load_foreign(network(), path, DATA)


def test_another_architecture(tmp_path):
    torch.save({"conv1.weight": torch.zeros(2), "fc.weight": torch.zeros(6, 4)}, tmp_path / "net.pt")
    refused(
        tmp_path / "net.pt",
        "another architecture than Sequential",
        "it lacks fc.bias, head.bias, head.weight and 5 more",
        "it also has conv1.weight",
        "model@teacher.model=NAME",
    )


def test_another_width(tmp_path):
    wide = network()
    wide.fc = nn.Linear(5, 6)
    torch.save(wide.state_dict(), tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "fc.weight has shape (6, 5), expected (6, 4)")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_another_number_of_classes(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(network(classes=10).state_dict(), path)
    refused(path, "head.", "10", "3", "number of classes")


@pytest.mark.parametrize(
    "about, words",
    [
        (
            {"class_names": ["dog", "cat", "owl"]},
            ["classes (in this order)", "['dog', 'cat', 'owl']", "['cat', 'dog', 'owl']"],
        ),
        ({"class_names": ["cat", "dog"]}, ["classes (in this order)", "['cat', 'dog']"]),
        ({"mean": [0.4]}, ["normalisation mean", "[0.4]", "[0.5]"]),
        ({"std": [0.3]}, ["normalisation std", "[0.3]", "[0.25]"]),
        ({"mean": [0.5, 0.5, 0.5]}, ["normalisation mean"]),
    ],
)
def test_other_data(tmp_path, about, words):
    save_weights(network(), tmp_path / "net.safetensors", vars(DATA) | about)
    refused(tmp_path / "net.safetensors", *words)


def test_a_network_that_was_normalised_for_data_that_are_not(tmp_path):
    save_weights(network(), tmp_path / "net.safetensors", vars(DATA))
    unknown = SimpleNamespace(class_names=DATA.class_names, mean=None, std=None)
    refused(tmp_path / "net.safetensors", "normalisation mean", "None", data=unknown)


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"fc.weight": 3}, torch.zeros(3), {"state_dict": {"fc": [1, 2]}}, 7]
)
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "no state_dict")


# --- code -------------------------------------------------------------------------------------------------------------


class Payload:
    """Unpickling this runs a command that leaves a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def as_torch_file(content, path):
    torch.save(content, path)


def as_old_torch_file(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [as_torch_file, as_old_torch_file, as_pickle])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_code_in_a_file_is_not_run(tmp_path, write, suffix):
    path, marker = tmp_path / f"net{suffix}", tmp_path / "marker"
    write({"state_dict": network().state_dict(), "extra": Payload(marker)}, path)
    if write is as_pickle:
        pickle.loads(path.read_bytes())
        assert marker.exists()  # the payload is a real one
        marker.unlink()
    refused(path)
    assert not marker.exists()


def test_the_message_about_code(tmp_path):
    torch.save({"fc.weight": Payload(tmp_path / "marker")}, tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "was not loaded", "execute code", "state_dict alone", ".safetensors")


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(network(), tmp_path / "net.pt")
    refused(tmp_path / "net.pt", "holds more than weights")
