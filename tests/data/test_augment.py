"""Augmenting a whole batch at once equals augmenting its images one by one."""

import numpy as np
import pytest
import torch
from keyed_reference import below, draws

from kd.data.augment import AUGMENTS, augment, view
from kd.errors import ConfigError

NAMES = sorted(AUGMENTS)
SETTINGS = {"none": (0, False), "shift": (2, False), "crop_flip": (4, True)}  # (pad, flip)


def reference(name, image, index, seed, epoch):
    """The view of one image, (C, H, W): paint it onto zeros at its offset, cut the middle out, mirror it."""
    pad, flips = SETTINGS[name]
    top, left, coin = draws(seed, epoch, index, 3)
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * pad, width + 2 * pad), image.dtype)
    padded[:, pad : pad + height, pad : pad + width] = image
    top, left = below(top, 2 * pad + 1), below(left, 2 * pad + 1)
    seen = padded[:, top : top + height, left : left + width]
    return seen[:, :, ::-1] if flips and coin % 2 else seen


def images(count, shape=(3, 9, 6), seed=0):
    return torch.randint(1, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed, epoch", [(0, 0), (0, 1), (2**32 - 1, 250)])
@pytest.mark.parametrize("shape", [(3, 9, 6), (1, 28, 28)])
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_one_image_at_a_time(name, shape, seed, epoch):
    image, index = images(40, shape), torch.arange(40) * 977 % 50_000
    seen = augment(name)(image, index, seed=seed, epoch=epoch)
    expected = [reference(name, one, row, seed, epoch) for one, row in zip(image.numpy(), index.tolist(), strict=True)]
    assert seen.dtype == torch.uint8
    np.testing.assert_array_equal(seen.numpy(), np.stack(expected))


def test_the_names_and_their_settings():
    assert {name: (made.pad, made.flip) for name, made in AUGMENTS.items()} == SETTINGS


def test_other_types_of_pixels():
    image = images(8)
    index = torch.arange(8)
    floats = augment("crop_flip")(image.float() / 255, index, seed=0, epoch=0)
    assert torch.equal(floats, augment("crop_flip")(image, index, seed=0, epoch=0).float() / 255)


@pytest.mark.parametrize("name, views", [("shift", 25), ("crop_flip", 162)])
def test_every_view_is_seen_about_equally_often(name, views):
    """One image in every place of a large batch: the images of a batch do not share a crop, and no view is missing."""
    count = 200 * views
    image = images(1, (1, 9, 9)).expand(count, -1, -1, -1)
    seen = augment(name)(image, torch.arange(count), seed=0, epoch=0)
    _, times = seen.flatten(1).unique(dim=0, return_counts=True)
    assert len(times) == views
    assert times.min() > 100 and times.max() < 300


@pytest.mark.parametrize("name", ["shift", "crop_flip"])
def test_a_view_belongs_to_its_image_alone(name):
    """It is the same in any batch, at any position, on any number of devices; and another in another epoch or seed."""
    image, index = images(60), torch.arange(100, 160)
    whole = augment(name)(image, index, seed=1, epoch=5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    parts = [augment(name)(image[rows], index[rows], seed=1, epoch=5) for rows in order.split(7)]
    assert torch.equal(torch.cat(parts), whole[order])
    for seed, epoch in ((1, 6), (2, 5)):
        other = augment(name)(image, index, seed=seed, epoch=epoch)
        assert (other != whole).flatten(1).any(1).sum() > 40


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_a_view_leads_to_it(name):
    """Every number makes a view of its own, and the draws' number makes what the draws make, bit by bit."""
    made, image = augment(name), images(1)
    every = made.numbered(image.expand(made.views, -1, -1, -1), torch.arange(made.views))
    assert made.views == len(every) == {"none": 1, "shift": 25, "crop_flip": 162}[name]
    assert len(every.flatten(1).unique(dim=0)) == made.views
    many, index = images(4000, (1, 9, 6)), torch.arange(4000) * 13
    for seed, epoch in ((0, 0), (7, 30)):
        number = made.numbers(index, seed=seed, epoch=epoch)
        assert torch.equal(made.numbered(many, number), made(many, index, seed=seed, epoch=epoch))
        assert number.unique().tolist() == list(range(made.views))


@pytest.mark.parametrize("name", NAMES)
def test_views_are_numbered_by_top_then_left_then_flip(name):
    """The order that the files of a cache are written in: another one must not be taken for it."""
    (pad, flips), image = SETTINGS[name], images(1)
    padded = np.pad(image.numpy()[0], ((0, 0), (pad, pad), (pad, pad)))
    number = 0
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            for mirrored in range(1 + flips):
                expected = padded[:, top : top + 9, left : left + 6]
                expected = expected[:, :, ::-1] if mirrored else expected
                found = augment(name).numbered(image, torch.tensor([number]))
                np.testing.assert_array_equal(found[0].numpy(), expected)
                number += 1
    assert number == augment(name).views


def test_no_augmentation_is_no_work():
    image = images(3)
    assert augment("none")(image, torch.arange(3), seed=0, epoch=0) is image


def test_the_batch_itself_is_left_alone():
    image = images(10)
    before = image.clone()
    augment("crop_flip")(image, torch.arange(10), seed=0, epoch=0)
    assert torch.equal(image, before)


def test_the_middle_crop_is_the_image():
    image = images(2)
    middle, straight = torch.tensor([4, 4]), torch.tensor([False, True])
    seen = view(image, middle, middle, straight, 4)
    assert torch.equal(seen[0], image[0])
    assert torch.equal(seen[1], image[1].flip(-1))


def test_unknown_name():
    with pytest.raises(
        ConfigError, match=r"Unknown augmentation 'cropflip'. Did you mean 'crop_flip'\? Known: crop_fl"
    ):
        augment("cropflip")
