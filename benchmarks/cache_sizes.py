"""`python -m benchmarks.cache_sizes`: what datasets take on the training device, and their teacher caches on the disk.

Writes the table of docs/teacher-cache.md. The cache's sizes are those of a full one: a run adds to it what its epochs
have seen, at most one view of each image per epoch.
"""

from pathlib import Path

from kd.cache_file import RECORD
from kd.data.augment import AUGMENTS

PAGE = Path(__file__).parents[1] / "docs" / "teacher-cache.md"
BEGIN, END = "<!-- sizes:begin -->", "<!-- sizes:end -->"
#: training images, test images, bytes of an image, classes; tests/test_cache_sizes.py holds them against the data
DATASETS = {
    "digits": (1_400, 397, 8 * 8, 10),
    "mnist": (60_000, 10_000, 28 * 28, 10),
    "fashion_mnist": (60_000, 10_000, 28 * 28, 10),
    "cifar10": (50_000, 10_000, 3 * 32 * 32, 10),
    "cifar100": (50_000, 10_000, 3 * 32 * 32, 100),
}
LABEL_BYTES = 8
LOGIT_BYTES = {"float32": 4, "bfloat16": 2}


def resident_bytes(name: str) -> int:
    """The images and labels of a dataset."""
    train, test, image, _ = DATASETS[name]
    return (train + test) * (image + LABEL_BYTES)


def cache_bytes(name: str, views: int, logit_bytes: int) -> int:
    """A full cache: the logits of all views, with each one's number and hash."""
    train, _, _, classes = DATASETS[name]
    return train * views * (classes * logit_bytes + RECORD.itemsize)


def epoch_bytes(name: str, logit_bytes: int) -> int:
    """The logits of one epoch, on the training device."""
    train, _, _, classes = DATASETS[name]
    return train * classes * logit_bytes


def table() -> str:
    views = {name: made.views for name, made in AUGMENTS.items()}
    caches = [(augment, dtype) for augment in views for dtype in LOGIT_BYTES]
    heads = ["dataset", "resident data", "one epoch's logits", *(f"{a} ({views[a]}), {d}" for a, d in caches)]
    rows = []
    for name in DATASETS:
        epoch = " / ".join(_size(epoch_bytes(name, size)) for size in LOGIT_BYTES.values())
        sizes = [_size(cache_bytes(name, views[augment], LOGIT_BYTES[dtype])) for augment, dtype in caches]
        rows.append([name, _size(resident_bytes(name)), epoch, *sizes])
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def render(page: str) -> str:
    """The page with its table as it should be."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())
