"""Known checksums of the public datasets' files; each file is read once and then remembered by size and mtime."""

import hashlib
import json
import os
from pathlib import Path

from kd.errors import DataError

Checksums = dict[str, str]  # file name inside the data root -> MD5

# As published with the datasets (and checked by torchvision on download): of CIFAR's unpacked files and of
# Fashion-MNIST's archives. MNIST's are of the four unpacked files, which torchvision's sums do not cover.
CIFAR10: Checksums = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
CIFAR100: Checksums = {
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
}
MNIST: Checksums = {
    "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MNIST: Checksums = {
    "FashionMNIST/raw/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "FashionMNIST/raw/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "FashionMNIST/raw/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


def missing(root: Path, files: Checksums) -> list[str]:
    """The files that are not there."""
    return [name for name in files if not (root / name).is_file()]


def verify(root: Path, files: Checksums) -> None:
    """Raise `DataError` if a file's content is not the published one."""
    known = _remembered()
    for name, published in files.items():
        path = (root / name).resolve()
        stat = path.stat()
        seen = [stat.st_size, stat.st_mtime_ns, published]
        if known.get(str(path)) == seen:
            continue
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if found != published:
            raise DataError(
                f"{path} is damaged: its MD5 is {found}, the published file's is {published}. "
                "Delete it and fetch it again."
            )
        known[str(path)] = seen
    _remember(known)


def _memory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kd" / "verified.json"


def _remembered() -> dict[str, list[object]]:
    try:
        content = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # only costs reading the files once more
    return content if isinstance(content, dict) else {}


def _remember(known: dict[str, list[object]]) -> None:
    path = _memory()
    if known == _remembered():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        return  # a home without write access: the files are read again next time
