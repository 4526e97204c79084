"""The file of a teacher cache: what is written is read, by any process, or the reading is refused."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kd.cache_file import ENTRIES, LOGITS, META, CacheFile, from_bits, hashes, to_bits
from kd.errors import StoreError

ROOT = Path(__file__).parents[1]
IDENTITY = {"weights": "abc", "batch": 4}
CLASSES, COUNT = 3, 500


def made(folder, itemsize=4):
    meta = {"identity": IDENTITY, "entries": COUNT, "classes": CLASSES, "itemsize": itemsize}
    return CacheFile.create(folder, meta)


def logits_of(entries):
    """Logits that say which entry they belong to."""
    entries = np.asarray(entries)
    return to_bits(torch.from_numpy(entries[:, None] * 10.0 + np.arange(CLASSES)).float())


def assert_right(file, expected):
    bits, there = file.read(np.arange(COUNT))
    assert np.flatnonzero(there).tolist() == sorted(expected)
    np.testing.assert_array_equal(bits[there], logits_of(np.flatnonzero(there)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_written_is_read_bit_by_bit(dtype, tmp_path):
    logits = torch.randn(20, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0] = torch.tensor([float("nan"), float("-inf"), -0.0])
    entries = np.random.default_rng(0).permutation(COUNT)[:20]
    made(tmp_path / "c", dtype.itemsize).write(entries, to_bits(logits))
    bits, there = CacheFile.find(tmp_path / "c", IDENTITY).read(entries[::-1])
    assert there.all()
    found = from_bits(bits, dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(to_bits(found), to_bits(logits.flip(0)))


def test_an_entry_is_written_once_and_seen_by_those_who_have_the_file_open(tmp_path):
    one = made(tmp_path / "c")
    other = made(tmp_path / "c")  # finds the first one's
    one.write(np.array([7, 400]), logits_of([7, 400]))
    assert_right(other, [7, 400])
    other.write(np.array([400, 8]), np.stack([logits_of([0])[0], logits_of([8])[0]]))  # 400 is there already
    assert_right(one, [7, 8, 400])
    assert len(one) == 3
    assert (tmp_path / "c" / LOGITS).stat().st_size == 3 * CLASSES * 4
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]


def test_an_empty_writing(tmp_path):
    file = made(tmp_path / "c")
    file.write(np.array([], np.int64), logits_of([]))
    assert_right(file, [])


def test_there_is_no_file():
    assert CacheFile.find(Path("nowhere"), IDENTITY) is None


# --- damage -----------------------------------------------------------------------------------------------------------


def flip_bit(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("byte", [0, 5, 3 * CLASSES * 4 - 1])
def test_a_changed_logit_is_refused(byte, tmp_path):
    file = made(tmp_path / "c")
    file.write(np.array([5, 6, 9]), logits_of([5, 6, 9]))
    flip_bit(tmp_path / "c" / LOGITS, byte)
    owner = [5, 6, 9][byte // (CLASSES * 4)]
    rest = np.array([entry for entry in (5, 6, 9) if entry != owner])
    again = CacheFile.find(tmp_path / "c", IDENTITY)
    assert again.read(rest)[1].all()
    with pytest.raises(StoreError, match=rf"c is damaged: the logits of entry {owner} .* Delete the folder"):
        again.read(np.arange(COUNT))


@pytest.mark.parametrize("byte", range(8))
def test_a_changed_number_or_hash_is_refused(byte, tmp_path):
    made(tmp_path / "c").write(np.array([5]), logits_of([5]))
    flip_bit(tmp_path / "c" / ENTRIES, byte)
    with pytest.raises(StoreError, match="is damaged"):
        CacheFile.find(tmp_path / "c", IDENTITY).read(np.arange(COUNT))


def test_logits_that_are_cut_off_are_refused_and_missing_numbers_are_only_missing(tmp_path):
    file = made(tmp_path / "c")
    file.write(np.arange(10), logits_of(range(10)))
    os.truncate(tmp_path / "c" / ENTRIES, 8 * 7 + 3)  # the eighth number is half there
    assert_right(CacheFile.find(tmp_path / "c", IDENTITY), range(7))
    with pytest.raises(StoreError, match="has become shorter"):
        file.read(np.arange(10))
    again = CacheFile.find(tmp_path / "c", IDENTITY)
    again.write(np.array([100, 9]), logits_of([100, 9]))
    assert_right(CacheFile.find(tmp_path / "c", IDENTITY), [*range(7), 9, 100])
    os.truncate(tmp_path / "c" / LOGITS, 40)
    for read in (lambda: again.read(np.array([3])), lambda: CacheFile.find(tmp_path / "c", IDENTITY)):
        with pytest.raises(StoreError, match=r"logits.bin has 40 bytes, expected at least 108. Delete the folder"):
            read()


@pytest.mark.parametrize("content", ["", "{}", '{"identity": {"weights": "other"}}', "[1]", "\x00"])
def test_a_description_that_cannot_be_read_is_refused(content, tmp_path):
    made(tmp_path / "c")
    (tmp_path / "c" / META).write_text(content)
    with pytest.raises(StoreError, match=r"cannot be read .* Delete the folder .*c; it is filled again"):
        CacheFile.find(tmp_path / "c", IDENTITY)


@pytest.mark.parametrize("name", ["", META, LOGITS, ENTRIES])
def test_nothing_is_written_through_a_link(name, tmp_path):
    made(tmp_path / "c").write(np.array([5]), logits_of([5]))
    path = tmp_path / "c" / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"is a symbolic link to .*elsewhere, which nothing in a teacher cache is"):
        CacheFile.find(tmp_path / "c", IDENTITY)


def test_hashes_depend_on_every_bit_and_on_the_entry():
    bits = logits_of([1])
    found = {int(hashes(np.array([entry]), bits)[0]) for entry in range(1000)}
    for column in range(CLASSES):
        for bit in range(32):
            changed = bits.copy()
            changed[0, column] ^= np.uint32(1 << bit)
            found.add(int(hashes(np.array([1]), changed)[0]))
    assert len(found) == 1000 + CLASSES * 32
    assert hashes(np.array([1]), bits[:, ::-1]) != hashes(np.array([1]), bits)


# --- several processes, and their ends --------------------------------------------------------------------------------

FILLING = """
import sys
import numpy as np
from pathlib import Path
from tests.test_cache_file import COUNT, logits_of, made
file = made(Path(sys.argv[1]))
for part in np.array_split(np.random.default_rng(int(sys.argv[2])).permutation(COUNT), 100):
    file.write(part, logits_of(part))
    print("written", flush=True)
"""


def filling(folder, seed):
    return subprocess.Popen(
        [sys.executable, "-c", FILLING, str(folder), str(seed)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_fill_the_same_file(tmp_path):
    processes = [filling(tmp_path / "c", seed) for seed in (1, 2)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    file = CacheFile.find(tmp_path / "c", IDENTITY)
    assert len(file) == COUNT
    assert_right(file, range(COUNT))


def test_a_killed_process_leaves_a_file_that_the_next_one_continues(tmp_path):
    process = filling(tmp_path / "c", 1)
    for _ in range(10):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with (tmp_path / "c" / LOGITS).open("ab") as file:  # as if killed within a writing
        file.write(b"half of a row")
    with (tmp_path / "c" / ENTRIES).open("ab") as file:
        file.write(b"hal")
    file = CacheFile.find(tmp_path / "c", IDENTITY)
    assert len(file) >= 50
    started = np.flatnonzero(file.read(np.arange(COUNT))[1])
    assert_right(file, started)
    file.write(np.arange(COUNT), logits_of(range(COUNT)))
    assert_right(CacheFile.find(tmp_path / "c", IDENTITY), range(COUNT))


def test_a_full_disk_leaves_a_file_that_is_right(tmp_path):
    """As real as it gets without one: the system refuses to make any file longer."""
    file = made(tmp_path / "c")
    file.write(np.arange(10), logits_of(range(10)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * CLASSES * 4 + 50, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.write(np.arange(300), logits_of(range(300)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "c" / LOGITS).stat().st_size > 10 * CLASSES * 4  # some of it went there
    assert_right(file, range(10))
    file.write(np.arange(20, 30), logits_of(range(20, 30)))
    assert_right(CacheFile.find(tmp_path / "c", IDENTITY), [*range(10), *range(20, 30)])


def test_a_disk_that_is_full_at_the_start_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            made(tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
