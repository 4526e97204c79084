"""The public datasets: their file formats, and what happens when files are absent or damaged."""

import gzip
import hashlib
import pickle
import socket
import urllib.error

import numpy as np
import pytest
import torch
import torchvision.datasets

from kd.data import CIFAR10, CIFAR100, MNIST, FashionMNIST, published
from kd.data.published import read_idx
from kd.errors import DataError

COUNTS = {"train": 12, "t10k": 5}


def idx(array):
    """An array of unsigned bytes as an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write(root, files):
    """Write the files (name -> content) and return their checksums."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return {name: hashlib.md5(content).hexdigest() for name, content in files.items()}


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def mnist_files(folder, pack=lambda content: content, ending=""):
    files = {}
    for prefix, count in COUNTS.items():
        files[f"{folder}/raw/{prefix}-images-idx3-ubyte{ending}"] = pack(idx(noise(count, 28, 28)))
        files[f"{folder}/raw/{prefix}-labels-idx1-ubyte{ending}"] = pack(idx(np.arange(count) % 10))
    return files


# --- IDX --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 28, 28)])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_read_idx(tmp_path, shape, ending):
    array = noise(*shape)
    path = tmp_path / f"file{ending}"
    path.write_bytes(gzip.compress(idx(array)) if ending else idx(array))
    found = read_idx(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.uint8
    found[0] = 1  # torch takes arrays that can be written


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\x03\0\0",  # ends inside the header
        b"\0\0\x08\x00",
        b"\0\0\x0d" + idx(noise(3))[3:],  # floats
        idx(noise(2, 5))[:-1],
        idx(noise(2, 5)) + b"x",
        b"<html>404</html>",
    ],
)
def test_no_idx_file(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match="file is not an IDX file of unsigned bytes, or it is cut off"):
        read_idx(path)


@pytest.mark.parametrize("damage", [lambda packed: packed[:-9], lambda packed: b"x" + packed, lambda _: b""])
def test_no_archive(tmp_path, damage):
    path = tmp_path / "file.gz"
    path.write_bytes(damage(gzip.compress(idx(noise(2, 5)))))
    with pytest.raises(DataError, match=r"file\.gz is no"):
        read_idx(path)


# --- MNIST's family ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dataset, folder, pack, ending",
    [(MNIST, "MNIST", bytes, ""), (FashionMNIST, "FashionMNIST", gzip.compress, ".gz")],
)
def test_mnist_s_family(tmp_path, monkeypatch, dataset, folder, pack, ending):
    files = write(tmp_path, mnist_files(folder, pack, ending))
    assert list(files) == list(dataset.files)
    monkeypatch.setattr(dataset, "files", files)
    data = dataset(root=str(tmp_path), batch_size=20, val=2)
    assert data.counts() == {"train": 10, "val": 2, "test": 5}
    assert data.image_shape == (1, 28, 28)
    assert data.num_classes == 10
    [batch] = data.test_dataloader()
    np.testing.assert_array_equal(batch.image[:, 0].numpy(), noise(5, 28, 28))
    assert batch.target.tolist() == [0, 1, 2, 3, 4]


def test_a_damaged_file(tmp_path, monkeypatch):
    files = write(tmp_path, mnist_files("MNIST"))
    monkeypatch.setattr(MNIST, "files", files)
    labels = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x07")
    with pytest.raises(DataError, match=f"{labels} is damaged"):
        MNIST(root=str(tmp_path), batch_size=20, val=2)


def test_the_names_of_fashion_mnist():
    assert FashionMNIST.class_names[0] == "T-shirt/top"
    assert FashionMNIST.class_names[9] == "Ankle boot"


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def cifar_files(folder, parts, meta, labels, names):
    """Files in CIFAR's layout: 2 images in each part, told apart by their part's number."""
    files = {}
    for number, part in enumerate(parts):
        rows = np.repeat(noise(1, 3072), 2, axis=0)
        rows[:, 0] = number
        files[f"{folder}/{part}"] = pickle.dumps({"data": rows, labels: [number, number + 1], "coarse_labels": [0, 0]})
    return files | {f"{folder}/{meta}": pickle.dumps(names)}


def test_cifar100(tmp_path, monkeypatch):
    names = [f"class {number}" for number in range(100)]
    meta = {"fine_label_names": names, "coarse_label_names": ["all"]}
    files = write(tmp_path, cifar_files("cifar-100-python", ["train", "test"], "meta", "fine_labels", meta))
    assert list(files) == list(CIFAR100.files)
    monkeypatch.setattr(CIFAR100, "files", files)
    data = CIFAR100(root=str(tmp_path), batch_size=8, val=0)
    assert data.class_names == names
    assert data.num_classes == 100
    [batch] = data.test_dataloader()
    assert batch.target.tolist() == [1, 2]
    expected = noise(1, 3072).reshape(3, 32, 32)
    expected[0, 0, 0] = 1
    np.testing.assert_array_equal(batch.image[0].numpy(), expected)


def test_cifar10_joins_its_parts_in_order(tmp_path, monkeypatch):
    parts = [f"data_batch_{number}" for number in (1, 2, 3, 4, 5)] + ["test_batch"]
    made = cifar_files("cifar-10-batches-py", parts, "batches.meta", "labels", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "files", write(tmp_path, made))
    data = CIFAR10(root=str(tmp_path), batch_size=8, val=0)
    assert data.train_targets.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert data._splits["train"][0][:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.class_names == list("abcdefghij")


def test_cifar10_is_read_as_torchvision_reads_it(real_data, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda _: True)  # ours has checked the sums
    ours = CIFAR10(root=str(real_data), batch_size=8, val=0)
    theirs = torchvision.datasets.CIFAR10(str(real_data), train=False)
    images, targets = ours._splits["test"]
    assert torch.equal(images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
    assert targets.tolist() == theirs.targets
    assert ours.class_names == theirs.classes


# --- absent files -----------------------------------------------------------------------------------------------------


def offline(root, train, download):
    assert download
    raise urllib.error.URLError("no route to host")


@pytest.mark.parametrize("dataset", [MNIST, FashionMNIST, CIFAR10, CIFAR100])
def test_without_a_network_the_message_lists_the_files(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(torchvision.datasets, dataset.__name__, offline)
    with pytest.raises(DataError) as error:
        dataset(root=str(tmp_path), batch_size=8, val=0)
    message = str(error.value)
    for name in dataset.files:
        assert str(tmp_path / name) in message
    for word in (dataset.name, "no route to host", "data.root", "KD_DATA_DIR"):
        assert word in message


@pytest.mark.parametrize("is_there", [False, True])
def test_a_mistaken_folder_does_not_stay(tmp_path, monkeypatch, is_there):
    def begun(root, train, download):
        (tmp_path / "data" / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
        raise RuntimeError("Error downloading train-images:\nno route to host")

    root = tmp_path / "data"
    if is_there:
        root.mkdir()
    monkeypatch.setattr(torchvision.datasets, "MNIST", begun)
    with pytest.raises(DataError, match="Error downloading train-images: no route to host"):
        MNIST(root=str(root), batch_size=8, val=0)
    assert root.exists() == is_there


def test_only_the_absent_files_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    write(tmp_path, {name: content for name, content in mnist_files("MNIST").items() if "t10k-labels" not in name})
    with pytest.raises(DataError) as error:
        MNIST(root=str(tmp_path), batch_size=8, val=0)
    assert str(error.value).count(str(tmp_path / "MNIST")) == 1
    assert "t10k-labels" in str(error.value)


def test_what_can_be_downloaded_is(tmp_path, monkeypatch):
    """Each half is asked for with a time limit on the network, which is gone afterwards."""
    asked = []

    def online(root, train, download):
        asked.append((root, train, download, socket.getdefaulttimeout()))
        write(tmp_path, mnist_files("MNIST"))

    monkeypatch.setattr(torchvision.datasets, "MNIST", online)
    monkeypatch.setattr(MNIST, "files", write(tmp_path / "elsewhere", mnist_files("MNIST")))
    data = MNIST(root=str(tmp_path), batch_size=8, val=0)
    assert data.counts()["train"] == 12
    limit = published.DOWNLOAD_TIMEOUT_S
    assert asked == [(str(tmp_path), True, True, limit), (str(tmp_path), False, True, limit)]
    assert socket.getdefaulttimeout() is None


def test_files_that_are_there_are_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    monkeypatch.setattr(MNIST, "files", write(tmp_path, mnist_files("MNIST")))
    assert MNIST(root=str(tmp_path), batch_size=8, val=0).counts()["test"] == 5
