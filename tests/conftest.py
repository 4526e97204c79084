"""What all tests share: a cache folder of their own, a fixed start of the random numbers, and the real datasets."""

import os
from pathlib import Path

os.environ["KD_TRUST"] = "tests"  # classes of tests stand for a user's own
os.environ["OMP_NUM_THREADS"] = "1"  # of subprocesses too: threads that share a core with others mostly wait for them

import pytest
import torch
from filelock import FileLock

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """No test reads or writes the user's own cache. One folder for the session: real datasets are checked once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        yield folder


@pytest.fixture(scope="module")
def one_cluster(tmp_path_factory):
    """Tests with a cluster of their own wait for each other, also where several processes share the tests out.

    A lock, since pytest 9.2 no longer sees the marks by which pytest-xdist 3.8 would keep such tests in one process.
    """
    with FileLock(tmp_path_factory.getbasetemp().parent / "cluster.lock"):
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with MNIST and CIFAR-10; skips where there is none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = os.environ.get("KD_DATA_DIR") or (beside if beside.is_dir() else "")
    if not folder:
        pytest.skip("set KD_DATA_DIR to a folder with MNIST and CIFAR-10")
    return Path(folder)
