"""A folder of pictures: what is read, in which order, on how many processes, and what is wrong with it."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch._utils import ExceptionWrapper

from kd.data import ImageFolder, View
from kd.data.folder import ImageFiles
from kd.errors import ConfigError, DataError

CPU = torch.device("cpu")
CLASSES = ["one", "two", "zero"]  # in alphabetical order, which is not that of the numbers


@pytest.fixture(scope="module")
def pictures():
    """Real 8x8 digits by class name: 20 images each to train with, the rest to test."""
    images, targets = load_digits(return_X_y=True)
    images = (images * 15.9375).astype(np.uint8).reshape(-1, 8, 8)
    return {name: images[targets == label][:27] for label, name in enumerate(["zero", "one", "two"])}


@pytest.fixture
def folder(tmp_path, pictures):
    """60 PNGs to train with and 20 to test with."""
    for name, images in pictures.items():
        for split, some in (("train", images[:20]), ("test", images[20:])):
            (tmp_path / split / name).mkdir(parents=True)
            for number, image in enumerate(some):
                Image.fromarray(image).save(tmp_path / split / name / f"{number:02}.png")
    (tmp_path / "test" / "two" / "06.png").unlink()
    return tmp_path


def read(folder, **changes):
    settings = {"root": str(folder), "batch_size": 16, "val": 6, "image_size": 8, "channels": 1, "augment": "crop_flip"}
    return ImageFolder(**settings | changes)


def view(seed=0):
    return View("student", seed, "crop_flip")


def test_what_is_there(folder):
    data = read(folder)
    assert data.class_names == CLASSES
    assert data.counts() == {"train": 54, "val": 6, "test": 20}
    assert data.image_shape == (1, 8, 8)


def test_every_file_is_read_as_it_is(folder, pictures):
    data = read(folder, val=0)
    found = {}
    for batch in data.train_dataloader():
        assert batch.image.dtype == torch.uint8
        for image, target, index in zip(*batch, strict=True):
            found[index.item()] = (image, target)
    expected = [(image, label) for label, name in enumerate(CLASSES) for image in pictures[name][:20]]
    assert sorted(found) == list(range(60))
    for row, (image, label) in enumerate(expected):
        np.testing.assert_array_equal(found[row][0][0].numpy(), image)
        assert found[row][1] == label


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")  # Python 3.12 and later, of any fork
def test_the_number_of_workers_changes_nothing(folder):
    alone, helped = (read(folder, num_workers=workers).use(view(seed=4)) for workers in (0, 2))
    for one, other in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert all(torch.equal(*parts) for parts in zip(one, other, strict=True))


def test_normalised_with_the_statistics_of_imagenet(folder):
    for channels, mean, std in ((1, [0.449], [0.226]), (3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])):
        data = read(folder, channels=channels)
        raw = next(iter(data.val_dataloader()))
        image = data.on_device(raw, CPU).image
        assert image.shape == (6, channels, 8, 8)
        pixels = raw.image.numpy() / 255
        for channel in range(channels):
            expected = (pixels[:, channel] - mean[channel]) / std[channel]
            np.testing.assert_allclose(image[:, channel].numpy(), expected, atol=1e-5)


def test_omission(folder):
    data = read(folder, omit=[1])
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert 1 not in torch.cat([batch.target for batch in loader])
    assert 1 in torch.cat([batch.target for batch in data.test_dataloader()])


# --- sizes and modes --------------------------------------------------------------------------------------------------


def decoded(folder, picture, **changes):
    """The training image of class "one" once `picture` is its only file."""
    shutil.rmtree(folder / "train" / "one")
    (folder / "train" / "one").mkdir()
    picture.save(folder / "train" / "one" / "only.png")
    data = read(folder, val=0, **changes)
    return torch.cat([batch.image[batch.target == 0] for batch in data.train_dataloader()])[0]


@pytest.mark.parametrize(
    "width, height, columns, rows", [(14, 8, slice(3, 11), slice(8)), (8, 11, slice(8), slice(1, 9))]
)
def test_an_oblong_picture_keeps_its_middle(folder, width, height, columns, rows):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    image = decoded(folder, Image.fromarray(pixels))
    np.testing.assert_array_equal(image[0].numpy(), pixels[rows, columns])


@pytest.mark.parametrize("width, height, resized, left, top", [(40, 20, (16, 8), 4, 0), (20, 50, (8, 20), 0, 6)])
def test_a_large_picture_is_shrunk_to_its_shorter_side(folder, width, height, resized, left, top):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    expected = np.asarray(picture.resize(resized, Image.Resampling.BICUBIC))[top : top + 8, left : left + 8]
    image = decoded(folder, picture, channels=3)
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_a_small_picture_is_enlarged(folder):
    assert decoded(folder, Image.new("L", (3, 2), 77)).eq(77).all()


def test_grey_and_colour_become_each_other(folder):
    grey = decoded(folder, Image.new("RGB", (8, 8), (255, 0, 0)))
    assert grey.unique().tolist() == [76]  # ITU-R 601: 0.299 of 255
    colour = decoded(folder, Image.new("L", (8, 8), 9), channels=3)
    assert (colour.shape, colour.unique().tolist()) == ((3, 8, 8), [9])


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(folder):
    path = folder / "train" / "two" / "05.png"
    path.write_bytes(path.read_bytes()[:60])
    return path


def test_a_broken_picture_is_named(folder, broken):
    with pytest.raises(DataError) as error:
        list(read(folder, val=0).train_dataloader())
    assert str(error.value).startswith(f"{broken} cannot be read as an image")
    assert error.value.status == 3


def test_the_message_is_the_same_from_a_worker(folder, broken, monkeypatch):
    """Torch hands a worker's error on as a text with the worker's traceback; a real worker would take seconds."""
    original = ImageFiles.__getitem__

    def as_from_a_worker(files, row):
        try:
            return original(files, row)
        except DataError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    monkeypatch.setattr(ImageFiles, "__getitem__", as_from_a_worker)
    with pytest.raises(DataError) as error:
        list(read(folder, val=0).train_dataloader())
    assert str(error.value).startswith(f"{broken} cannot be read as an image")
    assert str(error.value).endswith("Remove or replace it.")
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture at all", b"P5\n4 x4\n255\n", b"BM" + b"\xff" * 60],
    ids=["empty", "text", "pgm", "bmp"],
)
def test_no_picture(folder, content):
    (folder / "train" / "two" / "05.png").write_bytes(content)
    with pytest.raises(DataError, match=r"05\.png cannot be read as an image"):
        list(read(folder, val=0).train_dataloader())


def test_missing_folder(tmp_path):
    with pytest.raises(DataError) as error:
        read(tmp_path / "nowhere")
    assert "nowhere" in str(error.value)
    assert "data.root/train/CLASS/*.png" in str(error.value)


def test_a_class_without_pictures(folder):
    (folder / "train" / "empty").mkdir()
    with pytest.raises(DataError, match=r"No images in .*train.*empty.*data\.root/train/CLASS"):
        read(folder)


def test_different_classes(folder):
    shutil.copytree(folder / "test" / "one", folder / "test" / "ten")
    with pytest.raises(DataError, match=r"different classes \(ten\)"):
        read(folder)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"channels": 2}, "`data.channels` to be 1 or 3, but got 2"),
        ({"image_size": 0}, "`data.image_size`"),
        ({"num_workers": -1}, "`data.num_workers`"),
    ],
)
def test_bad_values(folder, settings, words):
    with pytest.raises(ConfigError, match=words):
        read(folder, **settings)


# --- identity ---------------------------------------------------------------------------------------------------------


def test_identity(folder):
    before = read(folder).identity(view())
    assert read(folder).identity(view()) == before
    assert read(folder, num_workers=2).identity(view()) == before
    assert read(folder, image_size=9).identity(view()) != before
    assert read(folder, channels=3).identity(view()) != before


def test_a_changed_picture_changes_the_identity(folder):
    before = read(folder).identity(view())
    file = folder / "train" / "one" / "03.png"
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # written again, with as many bytes
    written_again = read(folder).identity(view())
    file.rename(file.with_name("99.png"))
    renamed = read(folder).identity(view())
    assert before != written_again != renamed != before


def test_a_changed_test_picture_does_not(folder):
    before = read(folder).identity(view())
    Image.new("L", (8, 8)).save(folder / "test" / "one" / "03.png")
    assert read(folder).identity(view()) == before
