"""The files of a public dataset are held against their published checksums, once."""

import hashlib
import json
from pathlib import Path

import pytest

from kd import checksums
from kd.errors import DataError

CONTENTS = {"set/one": b"first file", "set/two": b"second file"}


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """The file in which verified files are remembered, of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kd" / "verified.json"


@pytest.fixture
def root(tmp_path):
    for name, content in CONTENTS.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def published():
    return {name: hashlib.md5(content).hexdigest() for name, content in CONTENTS.items()}


@pytest.fixture
def reads(monkeypatch):
    """The names of the files whose whole content was read, as it grows."""
    names = []
    original = Path.read_bytes

    def counted(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    return names


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(bytes(content))


def test_the_published_files_pass(root, published):
    checksums.verify(root, published)


def test_a_changed_byte(root, published):
    flip_a_bit(root / "set" / "two")
    found = hashlib.md5((root / "set" / "two").read_bytes()).hexdigest()
    with pytest.raises(DataError) as error:
        checksums.verify(root, published)
    for word in (str(root / "set" / "two"), found, published["set/two"]):
        assert word in str(error.value)
    assert error.value.status == 3


def test_each_file_is_read_once(root, published, reads):
    checksums.verify(root, published)
    assert reads == ["one", "two"]
    checksums.verify(root, published)
    assert reads == ["one", "two"]


def test_from_any_path_to_it(root, published, reads, tmp_path, monkeypatch):
    checksums.verify(root, published)
    (tmp_path / "link").symlink_to(root)
    checksums.verify(tmp_path / "link", published)
    monkeypatch.chdir(tmp_path)
    checksums.verify(Path("data"), published)
    assert len(reads) == 2


def test_a_file_that_was_written_since_is_read_again(root, published):
    """A damage that keeps the size is found by the time of writing."""
    checksums.verify(root, published)
    path = root / "set" / "one"
    before = path.stat().st_mtime_ns
    flip_a_bit(path)
    assert path.stat().st_mtime_ns != before
    with pytest.raises(DataError, match="one is damaged"):
        checksums.verify(root, published)


def test_only_the_changed_file_is_read_again(root, published, reads):
    checksums.verify(root, published)
    (root / "set" / "one").write_bytes(CONTENTS["set/one"])
    checksums.verify(root, published)
    assert reads == ["one", "two", "one"]


def test_a_damaged_file_is_not_remembered(root, published, memory):
    flip_a_bit(root / "set" / "one")
    for _ in range(2):
        with pytest.raises(DataError):
            checksums.verify(root, published)
    assert not memory.exists()


def test_what_is_remembered_belongs_to_one_published_sum(root, published):
    checksums.verify(root, published)
    with pytest.raises(DataError, match="0123"):
        checksums.verify(root, published | {"set/one": "0123"})


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\udcff", '{"x": 3}'], ids=str)
def test_a_corrupt_memory_only_costs_time(root, published, memory, content):
    memory.parent.mkdir(parents=True)
    memory.write_bytes(content.encode("utf-8", "surrogateescape"))
    checksums.verify(root, published)
    assert str((root / "set" / "one").resolve()) in json.loads(memory.read_text())


def test_a_memory_that_cannot_be_written_only_costs_time(root, published, memory, reads):
    memory.parent.parent.mkdir()
    memory.parent.write_text("a file where the folder should be")
    for _ in range(2):
        checksums.verify(root, published)
    assert len(reads) == 4


def test_other_datasets_stay_remembered(root, published, reads):
    one, two = ({name: md5} for name, md5 in published.items())
    for files in (one, two, one, two):
        checksums.verify(root, files)
    assert reads == ["one", "two"]


def test_missing(root, published):
    assert checksums.missing(root, published) == []
    (root / "set" / "one").unlink()
    assert checksums.missing(root, published) == ["set/one"]
    assert checksums.missing(root / "nowhere", published) == list(published)
