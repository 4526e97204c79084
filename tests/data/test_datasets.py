"""Splits, limits, omission and normalisation of the image datasets; the constants that are written down."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from sklearn.datasets import load_digits

from kd.data import CIFAR10, MNIST, Digits, ResidentData, View
from kd.errors import ConfigError

CPU = torch.device("cpu")
ARMS = ["teacher", "baseline", "student"]


def digits(**changes):
    return Digits(**{"root": "unused", "batch_size": 64, "val": 200} | changes)


def view(arm="student", seed=0, augment="none"):
    return View(arm, seed, augment)


def seen(loader):
    """All targets and indices of a loader, in order."""
    batches = list(loader)
    if not batches:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    return torch.cat([batch.target for batch in batches]), torch.cat([batch.index for batch in batches])


def loaders(data):
    return {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}


@pytest.fixture(scope="module")
def mnist(real_data):
    return MNIST(root=str(real_data), batch_size=128, val=5000)


@pytest.fixture(scope="module")
def cifar10(real_data):
    return CIFAR10(root=str(real_data), batch_size=128, val=5000)


def statistics(images):
    """Mean and standard deviation of each channel of uint8 images, scaled to [0, 1], from exact sums."""
    found = []
    for channel in range(images.shape[1]):
        pixels = images[:, channel].int()
        mean, square = pixels.sum().item() / pixels.numel(), pixels.square().sum().item() / pixels.numel()
        found.append((mean / 255, (square - mean**2) ** 0.5 / 255))
    return found


# --- what there is ----------------------------------------------------------------------------------------------------


def test_digits():
    data = digits()
    assert data.counts() == {"train": 1200, "val": 200, "test": 397}
    assert data.image_shape == (1, 8, 8)
    assert data.class_names == list("0123456789")
    batch = next(iter(data.train_dataloader()))
    assert (batch.image.dtype, batch.image.shape) == (torch.uint8, (64, 1, 8, 8))


def test_digits_are_the_published_ones():
    """Every image of the package is there once, with its label, in the training or the test set."""
    data = digits(val=0)
    images, targets = load_digits(return_X_y=True)
    published = sorted((*image.astype(int), label) for image, label in zip(images, targets, strict=True))
    ours = []
    for loader in (data.train_dataloader(), data.test_dataloader()):
        for batch in loader:
            sixteenths = (batch.image.flatten(1).double() * 16 / 255).round().int()
            ours += [(*pixels, label) for pixels, label in zip(sixteenths.tolist(), batch.target.tolist(), strict=True)]
    assert sorted(ours) == published


def test_digits_constants():
    """They are of the images that are not in the test set, rounded to four digits."""
    images = torch.cat([batch.image for batch in digits(val=0).train_dataloader()])
    assert len(images) == 1400
    [(mean, std)] = statistics(images)
    assert Digits.mean == [round(mean, 4)]
    assert Digits.std == [round(std, 4)]


def test_mnist(mnist):
    assert mnist.counts() == {"train": 55_000, "val": 5_000, "test": 10_000}
    assert mnist.image_shape == (1, 28, 28)
    targets, _ = seen(mnist.test_dataloader())
    assert targets[:5].tolist() == [7, 2, 1, 0, 4]
    assert (targets == 3).sum() == 1010  # as Hinton et al. count them


def test_mnist_constants(mnist):
    [(mean, std)] = statistics(mnist._splits["train"][0])
    assert (MNIST.mean, MNIST.std) == ([round(mean, 4)], [round(std, 4)])


def test_cifar10(cifar10):
    assert cifar10.counts() == {"train": 45_000, "val": 5_000, "test": 10_000}
    assert cifar10.image_shape == (3, 32, 32)
    assert cifar10.class_names[7] == "horse"
    targets, _ = seen(cifar10.test_dataloader())
    assert targets[:4].tolist() == [3, 8, 8, 0]  # cat, ship, ship, airplane
    assert torch.bincount(targets).tolist() == [1000] * 10
    assert torch.bincount(cifar10.train_targets).tolist() == [5000] * 10


def test_cifar10_constants(cifar10):
    for mean, std, (true_mean, true_std) in zip(
        CIFAR10.mean, CIFAR10.std, statistics(cifar10._splits["train"][0]), strict=True
    ):
        assert abs(mean - true_mean) < 1e-4
        assert abs(std - true_std) < 1e-4


# --- splits and limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_the_split_is_disjoint_and_whole(name, request):
    data = digits() if name == "digits" else request.getfixturevalue(name)
    rows = torch.cat([data.train_rows, data.val_rows])
    assert torch.equal(rows.sort().values, torch.arange(len(data.train_targets)))


def test_the_split_is_fixed():
    """No seed of a run and nothing drawn before moves an image from one side to the other."""
    first = digits()
    torch.manual_seed(99)
    second = digits().use(view(seed=5))
    assert torch.equal(first.val_rows, second.val_rows)
    assert first.val_rows[:5].tolist() == [844, 1088, 1375, 50, 471]


def test_without_validation():
    data = digits(val=0)
    assert data.counts() == {"train": 1400, "val": 0, "test": 397}
    assert list(data.val_dataloader()) == []


@pytest.mark.parametrize("share, images", [(0.1, 140), (0.25, 350), (0.0, 0), (0.0001, 0)])
def test_validation_as_a_share(share, images):
    assert digits(val=share).counts() == {"train": 1400 - images, "val": images, "test": 397}


def test_train_limit_takes_the_first_of_the_training_split():
    whole, limited = digits(), digits(train_limit=100)
    assert limited.counts() == {"train": 100, "val": 200, "test": 397}
    assert torch.equal(limited.train_rows, whole.train_rows[:100])
    assert torch.equal(limited.val_rows, whole.val_rows)
    _, index = seen(limited.train_dataloader())
    assert sorted(index.tolist()) == sorted(whole.train_rows[:100].tolist())
    assert len(torch.bincount(limited.train_targets[index])) == 10


def test_test_limit():
    limited = digits(test_limit=50)
    assert limited.counts()["test"] == 50
    assert torch.equal(seen(limited.test_dataloader())[0], seen(digits().test_dataloader())[0][:50])


def test_a_loader_knows_its_length():
    data = digits(batch_size=7, train_limit=20)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert len(loader) == len(list(loader))
    assert [len(batch.target) for batch in data.train_dataloader()] == [7, 7, 6]


def test_the_index_leads_to_the_image():
    data = digits(val=0)
    images, targets = data._splits["train"]
    for batch in data.train_dataloader():
        assert torch.equal(batch.image, images[batch.index])
        assert torch.equal(batch.target, targets[batch.index])


# --- omission ---------------------------------------------------------------------------------------------------------

OMISSIONS = [
    ({"omit": [3]}, {3}, ["baseline", "student"]),
    ({"omit": [9, 0, 9]}, {0, 9}, ["baseline", "student"]),
    ({"keep": [7, 8]}, {0, 1, 2, 3, 4, 5, 6, 9}, ["baseline", "student"]),
    ({"omit": [3], "omit_from": ["student"]}, {3}, ["student"]),
    ({"omit": [3], "omit_from": ["teacher"]}, {3}, ["teacher"]),
    ({"omit": [3], "omit_from": ARMS}, {3}, ARMS),
    ({"omit": [3], "omit_from": []}, {3}, []),
]


@pytest.mark.parametrize("settings, absent, arms", OMISSIONS)
@pytest.mark.parametrize("arm", ARMS)
def test_no_omitted_image_reaches_the_arms_concerned(arm, settings, absent, arms):
    data = digits(**settings).use(view(arm, seed=3))
    everything = {split: seen(loader) for split, loader in loaders(digits()).items()}
    for split, loader in loaders(data).items():
        targets, index = seen(loader)
        hidden = absent if arm in arms and split != "test" else set()
        assert not hidden & set(targets.tolist())
        all_targets, all_index = everything[split]
        expected = {row for row, label in zip(all_index.tolist(), all_targets.tolist(), strict=True)} - {
            row for row, label in zip(all_index.tolist(), all_targets.tolist(), strict=True) if label in hidden
        }
        assert sorted(index.tolist()) == sorted(expected)  # every other image is still there, once


def test_labels_are_not_renumbered():
    data = digits(omit=[0, 3])
    targets, index = seen(data.train_dataloader())
    assert torch.equal(targets, data.train_targets[index])
    assert set(targets.tolist()) == {1, 2, 4, 5, 6, 7, 8, 9}
    assert data.num_classes == 10
    assert data.class_names == list("0123456789")


def test_omission_on_mnist(real_data):
    data = MNIST(root=str(real_data), batch_size=8192, val=5000, omit=[3])
    targets, _ = seen(data.train_dataloader())
    threes = int((data.train_targets[data.train_rows] == 3).sum())
    assert (len(targets), int((targets == 3).sum())) == (55_000 - threes, 0)
    assert torch.bincount(seen(data.test_dataloader())[0])[3] == 1010


def test_counts_are_before_omission():
    assert digits(omit=[3]).counts() == digits().counts()


def test_what_was_omitted_is_plain_and_sorted():
    """Also when it comes through Hydra: result.json is written from it."""
    config = {"_target_": "kd.data.Digits", "root": "", "batch_size": 64, "val": 200, "keep": [5, 4, 3, 2, 1, 0]}
    data = instantiate(config | {"omit_from": ["student", "teacher"]})
    assert data.omit == [6, 7, 8, 9]
    assert type(data.omit) is list and type(data.omit_from) is list


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"omit": [10]}, ["`data.omit`", "10", "digits", "0 to 9"]),
        ({"omit": [-1]}, ["`data.omit`", "-1", "0 to 9"]),
        ({"omit": ["3"]}, ["`data.omit`", "'3'", "0 to 9"]),
        ({"omit": [True]}, ["`data.omit`", "True"]),
        ({"omit": 3}, ["`data.omit`", "list", "[3]"]),
        ({"omit": 0}, ["`data.omit`", "list", "got 0"]),
        ({"keep": [7, 12]}, ["`data.keep`", "12", "0 to 9"]),
        ({"omit": list(range(10))}, ["no class to learn from"]),
        ({"omit": [6, 2], "train_limit": 2}, ["No image is left", "[2, 6]", "2 images"]),
        ({"keep": [3], "val": 2}, ["No image is left", "2 images"]),
        ({"keep": [3], "val": 2, "omit_from": ["teacher"]}, ["No image is left"]),
        ({"train_limit": 0}, ["`data.train_limit`", "[1, 1200]", "got 0"]),
        ({"train_limit": 1201}, ["`data.train_limit`", "[1, 1200]", "1201"]),
        ({"train_limit": 0.5}, ["`data.train_limit`", "0.5"]),
        ({"test_limit": 0}, ["`data.test_limit`", "[1, 397]", "got 0"]),
        ({"test_limit": 398}, ["`data.test_limit`", "398"]),
        ({"val": -1}, ["`data.val`", "-1"]),
        ({"val": 1400}, ["`data.val`", "[0, 1399]", "1400"]),
        ({"val": 1.0}, ["`data.val`", "[0, 1)", "1.0"]),
        ({"val": -0.1}, ["`data.val`", "-0.1"]),
        ({"val": 0.9999}, ["`data.val`"]),
        ({"val": "many"}, ["`data.val`", "'many'"]),
        ({"batch_size": 0}, ["`data.batch_size`", "at least 1"]),
        ({"batch_size": 3.5}, ["`data.batch_size`", "3.5"]),
        ({"augment": "crop"}, ["'crop'", "crop_flip", "none", "shift"]),
    ],
)
def test_bad_values(settings, words):
    with pytest.raises(ConfigError) as error:
        digits(**settings)
    for word in words:
        assert word in str(error.value)


# --- identity ---------------------------------------------------------------------------------------------------------


def test_what_changes_the_weights_changes_the_identity():
    plain = digits().identity(view())
    assert digits().identity(view()) == plain
    changed = [
        digits(val=100).identity(view()),
        digits(train_limit=100).identity(view()),
        digits(omit=[3]).identity(view()),
        digits(omit=[4]).identity(view()),
        digits(batch_size=32).identity(view()),
        digits().identity(view(augment="shift")),
    ]
    for position, one in enumerate(changed):
        assert one not in [plain, *changed[:position]]


def test_what_an_arm_does_not_see_changes_does_not_change_its_identity():
    assert digits(omit=[3]).identity(view("teacher")) == digits().identity(view("teacher"))
    assert digits(omit=[3]).identity(view()) == digits(keep=[0, 1, 2, 4, 5, 6, 7, 8, 9]).identity(view())
    assert digits(test_limit=10, root="elsewhere").identity(view()) == digits().identity(view())


# --- normalisation ----------------------------------------------------------------------------------------------------


class Colours(ResidentData):
    """Noise in three channels, each with its own constants."""

    name = "colours"
    class_names = ["a", "b"]
    mean = [0.1, 0.5, 0.7]
    std = [0.2, 0.25, 0.5]

    def read(self):
        draw = np.random.default_rng(0)
        return {
            split: (draw.integers(0, 256, (count, 3, 5, 4), dtype=np.uint8), np.arange(count) % 2)
            for split, count in (("train", 20), ("test", 6))
        }


@pytest.mark.parametrize("make", [digits, lambda: Colours(root="", batch_size=8, val=4)])
def test_normalisation(make):
    data = make()
    for loader in loaders(data).values():
        raw = next(iter(loader))
        batch = data.on_device(raw, CPU)
        pixels = raw.image.numpy().astype(np.float64)
        for channel, (mean, std) in enumerate(zip(data.mean, data.std, strict=True)):
            expected = (pixels[:, channel] / 255 - mean) / std
            np.testing.assert_allclose(batch.image[:, channel].numpy(), expected, atol=1e-6)
        assert batch.image.dtype == torch.float32
        assert torch.equal(batch.target, raw.target)
        assert torch.equal(batch.index, raw.index)


def test_outside_of_a_training_nothing_is_augmented():
    data = digits().use(view(augment="crop_flip"))
    raw = next(iter(data.train_dataloader()))
    plain = digits().on_device(raw, CPU)
    assert torch.equal(data.on_device(raw, CPU).image, plain.image)


def test_all_hooks_of_a_dataset_of_ones_own_are_called():
    class Inverted(Digits):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch._replace(image=255 - batch.image)

    data = Inverted(root="", batch_size=8, val=4)
    raw = next(iter(data.train_dataloader()))
    expected = digits().on_device(raw._replace(image=255 - raw.image), CPU)
    assert torch.equal(data.on_device(raw, CPU).image, expected.image)


def test_images_and_labels_of_different_length():
    class Broken(Colours):
        def read(self):
            return {split: (images, labels[:-1]) for split, (images, labels) in super().read().items()}

    with pytest.raises(ValueError, match="colours: 20 images but 19 labels in train"):
        Broken(root="", batch_size=8, val=4)


def test_images_that_do_not_fit_on_the_device_are_streamed(monkeypatch, capsys):
    device, data = torch.device("meta"), Digits(root="", batch_size=32, val=0)
    needed = sum(part.numel() * part.element_size() for part in data._splits["train"])
    monkeypatch.setattr("kd.data.resident._free_bytes", lambda device: 2 * needed - 1)
    for _ in range(2):
        data._settle("train", device)
    assert data._splits["train"][0].device.type == "cpu"
    assert capsys.readouterr().out.count("digits: the train images take 0.1 MB, and meta has 0.2 MB free") == 1
    with pytest.raises(ConfigError, match="the images of digits do not fit on the training device"):
        data.views()
    fitting = Digits(root="", batch_size=32, val=0)
    monkeypatch.setattr("kd.data.resident._free_bytes", lambda device: 2 * needed)
    fitting._settle("train", device)
    assert {part.device.type for part in fitting._splits["train"]} == {"meta"}
    assert fitting.views().images.device.type == "meta"
    assert capsys.readouterr().out == ""
