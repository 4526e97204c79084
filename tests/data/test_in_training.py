"""What a network is shown inside a Lightning training: the right order, and the right view of every image."""

import lightning as L
import pytest
import torch
from keyed_reference import below, draws
from torch import nn

from kd.data import Digits, View
from kd.data.keyed import KeyedSampler
from kd.quiet import quiet


class Recorder(L.LightningModule):
    """Keeps every batch that it is given, by split; its one weight learns nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = {"train": {}, "val": {}, "test": {}}  # split -> epoch -> batches

    def keep(self, split, batch):
        self.seen[split].setdefault(self.current_epoch, []).append(batch)

    def training_step(self, batch, batch_idx):
        self.keep("train", batch)
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.keep("val", batch)

    def test_step(self, batch, batch_idx):
        self.keep("test", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def digits(seed=0, augment="crop_flip", arm="student", **changes):
    settings = {"root": "", "batch_size": 32, "val": 20, "train_limit": 80, "test_limit": 10}
    return Digits(**settings | changes).use(View(arm, seed, augment))


def trainer(epochs):
    quiet()
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


def fit(data, epochs=2, resume=None):
    module = Recorder()
    trainer(epochs).fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module.seen


def flat(batches):
    return torch.cat([batch.index for batch in batches]), torch.cat([batch.image for batch in batches])


def expected_view(data, row, seed, epoch):
    """The augmented, normalised image of one row, put together by hand."""
    image = data._splits["train"][0][row].double()
    top, left, coin = draws(seed, epoch, row, 3)
    padded = torch.zeros(1, 16, 16, dtype=torch.float64)
    padded[:, 4:12, 4:12] = image
    top, left = below(top, 9), below(left, 9)
    image = padded[:, top : top + 8, left : left + 8]
    return ((image.flip(-1) if coin % 2 else image) / 255 - Digits.mean[0]) / Digits.std[0]


def test_views_and_order_of_a_training():
    data = digits(seed=3)
    seen = fit(data)
    sampler = KeyedSampler(data.train_rows, 3)
    orders = []
    for epoch in (0, 1):
        index, image = flat(seen["train"][epoch])
        sampler.set_epoch(epoch)
        assert torch.equal(index, sampler.order())
        expected = torch.stack([expected_view(data, row, 3, epoch) for row in index.tolist()])
        torch.testing.assert_close(image.double(), expected, atol=1e-5, rtol=0)
        orders.append(index)
    assert not torch.equal(*orders)


def test_only_training_augments():
    data = digits()
    module = Recorder()
    runner = trainer(2)
    runner.fit(module, datamodule=data)
    runner.test(module, datamodule=data, verbose=False)
    for split, pictures in (("val", data._splits["train"][0]), ("test", data._splits["test"][0])):
        for batches in module.seen[split].values():
            index, image = flat(batches)
            expected = (pictures[index].double() / 255 - Digits.mean[0]) / Digits.std[0]
            torch.testing.assert_close(image.double(), expected, atol=1e-5, rtol=0)
    assert len(module.seen["val"]) == 2
    after = data.on_device(next(iter(data.train_dataloader())), torch.device("cpu"))
    plain = digits(augment="none").on_device(next(iter(digits(augment="none").train_dataloader())), torch.device("cpu"))
    assert set(after.index.tolist()) <= set(data.train_rows.tolist())
    assert not torch.equal(after.image, plain.image)  # another epoch's order
    assert after.image.min() >= plain.image.min() - 1e-6


def test_the_same_keys_give_the_same_batches():
    first, second = fit(digits(seed=1)), fit(digits(seed=1))
    for epoch in (0, 1):
        for one, other in zip(first["train"][epoch], second["train"][epoch], strict=True):
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.index, other.index)
    assert not torch.equal(flat(fit(digits(seed=2))["train"][0])[0], flat(first["train"][0])[0])


def test_one_datamodule_serves_one_arm_after_another():
    data = digits(seed=1, omit=[3], omit_from=["student"])
    teacher = fit(data.use(View("teacher", 5, "none")))
    student = fit(data.use(View("student", 1, "crop_flip")))
    assert 3 in torch.cat([batch.target for batch in teacher["train"][0]])
    for split in ("train", "val"):
        for batches in student[split].values():
            assert 3 not in torch.cat([batch.target for batch in batches])
    again = fit(digits(seed=1, omit=[3]))
    assert torch.equal(flat(student["train"][1])[1], flat(again["train"][1])[1])  # whatever was served before


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_resumed_training_goes_on_with_the_next_epoch(augment, tmp_path):
    whole = fit(digits(augment=augment), epochs=2)
    module, runner = Recorder(), trainer(1)
    runner.fit(module, datamodule=digits(augment=augment))
    runner.save_checkpoint(tmp_path / "last.ckpt")
    resumed = fit(digits(augment=augment), epochs=2, resume=tmp_path / "last.ckpt")
    assert list(resumed["train"]) == [1]
    for ours, theirs in zip(flat(resumed["train"][1]), flat(whole["train"][1]), strict=True):
        assert torch.equal(ours, theirs)


def test_without_validation_a_training_runs_through():
    seen = fit(digits(val=0))
    assert seen["val"] == {}
    assert list(seen["train"]) == [0, 1]
