"""The store gives back exactly what was put in, whole or not at all, to one process at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kd import store as store_module
from kd.errors import StoreError
from kd.files import sha256, write_json
from kd.store import META, METRICS, WEIGHTS, Store, read_weights, recipe_key, save_weights

KEY = "0123456789abcdef"
RECIPE = {"b": [1, 2.5], "a": {"y": None, "x": "é"}}


def network():
    """Matrices in another memory layout, a number, a half, and NaN: whatever a state can hold."""
    made = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(4, 5))
    made.register_buffer("odd", torch.tensor([float("nan"), float("-inf"), -0.0, 1e-40]))
    made.register_buffer("short", torch.randn(3).bfloat16())
    made.to(memory_format=torch.channels_last)
    made(torch.randn(2, 2, 6, 6))
    return made


def bits(module):
    """The state as bytes: NaN is equal to itself."""
    return {name: value.contiguous().view(-1).view(torch.uint8).tolist() for name, value in module.state_dict().items()}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_is_the_same_in_every_process_and_version():
    """Computed with the sha256sum command. Only a higher `RECIPE_VERSION` may change it."""
    assert store_module.RECIPE_VERSION == 1
    assert recipe_key(RECIPE) == "31559dfa6fac1b6c"


def test_the_order_of_a_mapping_does_not_matter():
    assert recipe_key({"a": {"x": "é", "y": None}, "b": [1, 2.5]}) == recipe_key(RECIPE)


def test_everything_else_does():
    others = [
        {"b": [2.5, 1], "a": {"y": None, "x": "é"}},
        {"b": [1, 2.5], "a": {"y": None, "x": "e"}},
        {"b": [1, 2.5], "a": {"y": 0, "x": "é"}},
        {"b": [1, 2.5], "a": {"x": "é"}},
    ]
    assert len({recipe_key(recipe) for recipe in [RECIPE, *others]}) == 5


def test_a_new_version_has_new_keys(monkeypatch):
    before = recipe_key(RECIPE)
    monkeypatch.setattr(store_module, "RECIPE_VERSION", store_module.RECIPE_VERSION + 1)
    assert recipe_key(RECIPE) != before


# --- round trip -------------------------------------------------------------------------------------------------------


def test_round_trip(store):
    original = network()
    meta = {"recipe": RECIPE, "class_names": ["a", "b"], "mean": [0.5], "std": [0.25], "val": {"accuracy": 0.75}}
    put = store.put(KEY, original, meta)
    found = Store(store.root).get(KEY)
    assert found == put
    assert {name: found.meta[name] for name in meta} == meta
    assert (found.key, found.meta["key"]) == (KEY, KEY)
    loaded = network()
    found.load_into(loaded)
    assert bits(loaded) == bits(original)


def test_what_an_entry_consists_of(store, tmp_path):
    """Readable without this project: safetensors, JSON and CSV; nothing pickled."""
    (tmp_path / "curves.csv").write_text("arm,epoch\nteacher,1\n")
    entry = store.put(KEY, network(), {"mean": [0.5]}, tmp_path / "curves.csv")
    assert sorted(path.name for path in entry.folder.iterdir()) == ["meta.json", "metrics.csv", "weights.safetensors"]
    assert json.loads((entry.folder / "meta.json").read_text())["sha256"] == sha256(entry.folder / WEIGHTS)
    assert entry.metrics_csv.read_text() == "arm,epoch\nteacher,1\n"
    assert sorted(read_weights(entry.folder / WEIGHTS)) == sorted(network().state_dict())


def test_equal_networks_are_equal_files(tmp_path):
    made, about = network(), {"class_names": ["a", "b"], "mean": [0.5], "std": [0.25], "model": {"x": 1}}
    paths = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for path in paths:
        save_weights(made, path, about)
    assert len({path.read_bytes() for path in paths}) == 1


def test_without_curves(store, tmp_path):
    entry = store.put(KEY, network(), {}, tmp_path / "never written.csv")
    assert not entry.metrics_csv.exists()


def test_a_group_that_shares_the_store_can_read_and_lock_it(store):
    before = os.umask(0o002)
    try:
        entry = store.put(KEY, network(), {})
        with store.lock(KEY, on_wait=lambda: None):
            lock = store.root / f"{KEY}.lock"
            assert lock.stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)
    assert (entry.folder / WEIGHTS).stat().st_mode & 0o777 == (entry.folder / META).stat().st_mode & 0o777 == 0o664


def test_the_network_itself_is_left_alone(store):
    original = network()
    before, strides = bits(original), original[0].weight.stride()
    store.put(KEY, original, {})
    assert bits(original) == before
    assert original[0].weight.stride() == strides


def test_tied_weights(store):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

    original, loaded = Tied(), Tied()
    store.put(KEY, original, {}).load_into(loaded)
    assert bits(loaded) == bits(original)


def test_no_entry(store):
    assert store.get(KEY) is None


def test_an_entry_put_again_replaces_the_first(store):
    """A run that was killed between two entries trains again, and puts the first one again."""
    store.put(KEY, network(), {"number": 1})
    second = network()
    store.put(KEY, second, {"number": 2})
    found, loaded = store.get(KEY), network()
    found.load_into(loaded)
    assert found.meta["number"] == 2
    assert bits(loaded) == bits(second)
    assert [path.name for path in store.root.iterdir()] == [KEY]


# --- crashes and damage -----------------------------------------------------------------------------------------------


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize("step", ["save_weights", "write_json", "sealed"])
def test_a_crash_while_writing_leaves_no_entry(store, step, monkeypatch):
    original, reached = getattr(store_module, step), []

    def crash(*arguments):
        reached.append(step)
        if step == "write_json":
            original(*arguments)  # the last step: both files are there, but not yet in their place
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(store_module, step, crash)
        with pytest.raises(PowerCut):
            store.put(KEY, network(), {})
    assert reached
    assert store.get(KEY) is None
    assert list(store.root.iterdir()) != []  # what was left half done
    entry = store.put(KEY, network(), {})
    assert Store(store.root).get(KEY) == entry


def test_a_crash_while_writing_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"number": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"number": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"fine": 1, "number": {1, 2}})
    assert json.loads(path.read_text()) == {"number": 1}


@pytest.mark.parametrize("position", [-1, 5, 200])
def test_damaged_weights(store, position):
    entry = store.put(KEY, network(), {})
    path = entry.folder / WEIGHTS
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    loaded = network()
    before = bits(loaded)
    with pytest.raises(StoreError, match=r"weights\.safetensors is damaged.*Delete the folder.*trained again") as error:
        store.get(KEY).load_into(loaded)
    assert error.value.status == 4
    assert bits(loaded) == before


def test_truncated_weights(store):
    path = store.put(KEY, network(), {}).folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match="damaged"):
        store.get(KEY).load_into(network())


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"sha256": 3}', "\udcff"], ids=str)
def test_damaged_meta(store, content):
    entry = store.put(KEY, network(), {})
    (entry.folder / META).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(StoreError, match=f"{KEY}: it cannot be read.*Delete the folder"):
        store.get(KEY)


@pytest.mark.parametrize("name", [META, METRICS])
def test_a_changed_digit_is_noticed(store, tmp_path, name):
    (tmp_path / "curves").write_text("epoch,value\n0,0.71\n")
    entry = store.put(KEY, network(), {"val": {"accuracy": 0.71}, "by": ("tuple", 1)}, tmp_path / "curves")
    assert store.get(KEY) == entry
    path = entry.folder / name
    path.write_text(path.read_text().replace("0.71", "0.91"))
    with pytest.raises(
        StoreError, match=rf"{KEY}: {name} is damaged: .*Delete the folder; the network is then trained"
    ):
        store.get(KEY)


def test_an_entry_of_an_earlier_version_has_no_seal(store):
    folder = store.put(KEY, network(), {"number": 1}).folder
    meta = json.loads((folder / META).read_text())
    write_json(folder / META, {name: value for name, value in meta.items() if name != "seal"})
    assert store.get(KEY).meta["number"] == 1


@pytest.mark.parametrize("name", [META, WEIGHTS])
def test_an_entry_without_one_of_its_files(store, name):
    (store.put(KEY, network(), {}).folder / name).unlink()
    with pytest.raises(StoreError, match=f"{KEY}: it cannot be read"):
        store.get(KEY)


def test_an_entry_of_another_network(store):
    """As after a change of the network's code."""
    entry = store.put(KEY, nn.Linear(3, 4), {})
    for other in (nn.Linear(3, 5), nn.Sequential(nn.Linear(3, 4))):
        with pytest.raises(StoreError, match=f"does not fit {type(other).__name__}.*Delete the folder"):
            entry.load_into(other)


@pytest.mark.parametrize("damage", [lambda _: b"", lambda content: content[:-1], lambda _: b"PK\3\4 something else"])
def test_no_safetensors_file(tmp_path, damage):
    path = tmp_path / "file.safetensors"
    save_weights(network(), path, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match="damaged or no safetensors file"):
        read_weights(path)


def test_no_file(tmp_path):
    with pytest.raises(StoreError, match="There is no file"):
        read_weights(tmp_path / "absent.safetensors")


# --- folders that cannot be used --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_root_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"Cannot write to store\.root=.*Choose another folder"):
        Store(tmp_path / place)


def test_opening_a_store_leaves_nothing_in_it(store):
    assert list(store.root.iterdir()) == []


# --- two processes ----------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from kd.store import Store

def say(word):
    print(word, flush=True)

store = Store(sys.argv[1])
with store.lock("key", on_wait=lambda: say("unexpected")):
    say("held")
    sys.stdin.readline()
    say("leaving")
sys.stdin.readline()
with store.lock("key", on_wait=lambda: say("waiting")):
    say("held again")
    sys.stdin.readline()
"""


def test_the_lock_is_for_one_process_at_a_time(store):
    """Each side waits for the other's word, so that no order of events is left to chance."""
    waited = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as other:
        try:

            def heard():
                return other.stdout.readline().strip()

            def go_on():
                other.stdin.write("\n")
                other.stdin.flush()

            def release():
                waited.append("for the other to leave")
                go_on()

            def kill():
                waited.append("for the other to die")
                other.kill()

            assert heard() == "held"
            with store.lock("another", on_wait=kill):
                pass  # another network's lock is free
            assert waited == []
            with store.lock("key", on_wait=release):
                assert waited == ["for the other to leave"]
                assert heard() == "leaving"
                go_on()
                assert heard() == "waiting"
            assert heard() == "held again"
            with store.lock("key", on_wait=kill):
                assert waited == ["for the other to leave", "for the other to die"]
        finally:
            other.kill()


def test_a_lock_is_left_after_an_error(store):
    with pytest.raises(RuntimeError), store.lock("key", on_wait=pytest.fail):
        raise RuntimeError
    with store.lock("key", on_wait=pytest.fail):
        pass


def test_a_lock_is_no_entry(store):
    with store.lock(KEY, on_wait=pytest.fail):
        assert store.get(KEY) is None
        store.put(KEY, network(), {})
    assert store.get(KEY) is not None
