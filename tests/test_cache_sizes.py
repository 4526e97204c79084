"""The sizes that the documentation gives are those of the data and of the files."""

from benchmarks.cache_sizes import DATASETS, PAGE, cache_bytes, epoch_bytes, render, resident_bytes
from kd.cache_file import CacheFile
from kd.data import Digits


def test_the_page_has_the_table():
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page, "run `python -m benchmarks.cache_sizes`"


def test_the_sizes_of_the_digits(tmp_path):
    data = Digits(root="", batch_size=64, val=0)
    parts = [part for split in data._splits.values() for part in split]
    assert resident_bytes("digits") == sum(part.numel() * part.element_size() for part in parts)
    train, _, _, classes = DATASETS["digits"]
    meta = {"identity": {}, "entries": train * 25, "classes": classes, "itemsize": 2}
    file = CacheFile.create(tmp_path / "cache", meta)
    assert cache_bytes("digits", 25, 2) == file.entry_bytes * train * 25
    assert epoch_bytes("digits", 4) == train * classes * 4


def test_the_published_shapes():
    """28x28 grey images (yann.lecun.com/exdb/mnist), 32x32 in three colours (Krizhevsky 2009)."""
    assert DATASETS["mnist"] == DATASETS["fashion_mnist"] == (60_000, 10_000, 784, 10)
    assert DATASETS["cifar10"] == (50_000, 10_000, 3072, 10)
    assert DATASETS["cifar100"] == (50_000, 10_000, 3072, 100)
