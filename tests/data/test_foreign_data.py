"""A user's own LightningDataModule as the data of a run."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kd.data import ForeignData, View
from kd.errors import ConfigError
from kd.types import Batch

CPU = torch.device("cpu")
IMAGES = torch.rand(20, 3, 6, 5, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(20, dtype=torch.int32) % 4


class Bare(L.LightningDataModule):
    """As small as a user's module can be: batches of (image, target), and no validation."""

    parts = (IMAGES, TARGETS)

    def train_dataloader(self):
        return DataLoader(TensorDataset(*self.parts), batch_size=8)

    def test_dataloader(self):
        return DataLoader(TensorDataset(*(part[:6] for part in self.parts)), batch_size=8)


class Counted(Bare):
    num_classes = 4


class Named(Bare):
    class_names = ("ant", "bee", "cow", "dog")
    mean, std = [0.5] * 3, [0.25] * 3

    def val_dataloader(self):
        return DataLoader(TensorDataset(*(part[:10] for part in self.parts)), batch_size=8)


def test_with_class_names():
    data = ForeignData(Named(), {"_target_": "mine.Named"})
    assert data.class_names == ["ant", "bee", "cow", "dog"]
    assert (data.mean, data.std) == ([0.5] * 3, [0.25] * 3)
    assert data.counts() == {"train": 20, "val": 10, "test": 6}


def test_with_a_number_of_classes():
    data = ForeignData(Counted(), {})
    assert data.class_names == ["0", "1", "2", "3"]
    assert data.num_classes == 4
    assert data.mean is None
    assert data.image_shape == (3, 6, 5)
    assert (data.omit, data.omit_from) == ([], [])


def test_without_validation():
    data = ForeignData(Counted(), {})
    assert list(data.val_dataloader()) == []
    assert data.counts() == {"train": 20, "val": 0, "test": 6}


def test_batches_become_ours():
    data = ForeignData(Counted(), {})
    batch = data.on_device(next(iter(data.train_dataloader())), CPU)
    assert isinstance(batch, Batch)
    assert torch.equal(batch.image, IMAGES[:8])  # the module's own pixels, as it normalised them
    assert batch.target.dtype == torch.int64
    assert batch.target.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert batch.index.tolist() == [-1] * 8


def test_an_index_is_kept():
    class Indexed(Counted):
        parts = (IMAGES, TARGETS, torch.arange(100, 120))

    data = ForeignData(Indexed(), {})
    assert data.on_device(next(iter(data.train_dataloader())), CPU).index.tolist() == list(range(100, 108))


def test_its_own_transfer_hook_and_stages_are_used():
    class Busy(Counted):
        def prepare_data(self):
            self.stages = []

        def setup(self, stage):
            self.stages.append(stage)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 2, batch[1]

    module = Busy()
    data = ForeignData(module, {})
    assert module.stages == ["fit", "test"]
    batch = data.on_device(next(iter(data.train_dataloader())), CPU)
    assert torch.equal(batch.image, IMAGES[:8] * 2)


def test_identity_is_the_configuration():
    view = View("student", 0, "none")
    one, other = (ForeignData(Counted(), {"size": size}).identity(view) for size in (1, 2))
    assert one == {"dataset": "Counted", "config": {"size": 1}, "augment": "none"}
    assert one != other


def test_an_arm_seeds_the_module_s_own_order():
    data = ForeignData(Counted(), {})
    draws = [(data.use(View("student", seed, "none")), torch.rand(3))[1] for seed in (4, 5, 4)]
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_neither_names_nor_number():
    with pytest.raises(ConfigError, match=r"Bare needs an attribute `class_names` .* or `num_classes`"):
        ForeignData(Bare(), {})


class Pairless(Counted):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return self.batches


@pytest.mark.parametrize(
    "batch",
    [
        {"image": IMAGES, "target": TARGETS},
        IMAGES,
        (IMAGES,),
        (IMAGES, TARGETS, TARGETS, TARGETS),
        (IMAGES.flatten(1), TARGETS),
        (IMAGES, ["ant"] * 20),
        ("pictures", TARGETS),
    ],
    ids=["dict", "images alone", "one part", "four parts", "flat images", "names as targets", "text"],
)
def test_a_bad_batch(batch):
    with pytest.raises(ConfigError, match=r"Pairless must give batches \(image \(B, C, H, W\), target"):
        ForeignData(Pairless([batch]), {})


def test_no_batch():
    with pytest.raises(ConfigError, match="Pairless: the train dataloader is empty"):
        ForeignData(Pairless([]), {})


def test_no_test_set():
    class Untested(L.LightningDataModule):
        num_classes = 4
        train_dataloader = Bare.train_dataloader
        parts = Bare.parts

    with pytest.raises(ConfigError, match="Untested needs a `test_dataloader`"):
        ForeignData(Untested(), {})


def test_images_are_counted_without_a_dataset():
    data = ForeignData(Pairless([(IMAGES[:8], TARGETS[:8]), (IMAGES[:5], TARGETS[:5])]), {})
    assert data.counts()["train"] == 13
