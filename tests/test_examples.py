"""The test images that a page shows: which are chosen, and that they are those of the dataset."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from kd import build, examples
from tests.commands import QUICK, Command, configured


@pytest.fixture(scope="module")
def data():
    return build.data(configured())


def read(folder):
    return json.loads((folder / "examples.json").read_text())["images"]


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["png"]))))


def all_test_images(data):
    batches = list(data.test_dataloader())
    return torch.cat([batch.image for batch in batches]), torch.cat([batch.target for batch in batches])


def test_the_chosen_images_are_the_most_telling_and_the_most_changed(data, tmp_path):
    images, target = all_test_images(data)
    generator = torch.Generator().manual_seed(0)
    logits = {arm: torch.randn(len(target), 10, generator=generator) for arm in ("teacher", "baseline", "student")}
    logits["teacher"][torch.arange(len(target)), target] += 3
    examples.write(tmp_path, data, logits, target)
    found = read(tmp_path)
    for image in found:
        place = image["index"]
        assert np.array_equal(pixels(image), images[place, 0].numpy())
        assert image["target"] == int(target[place])
        for arm, values in image["logits"].items():
            assert values == pytest.approx(logits[arm][place].tolist(), abs=1e-4)

    def sure(arm, place):
        values = [np.exp(value) for value in logits[arm][place].double().tolist()]
        return values[int(target[place])] / sum(values)

    dark = [image for image in found if image["kind"] == "dark"]
    assert [image["target"] for image in dark] == list(range(10))
    for image in dark:
        rivals = [
            place
            for place in range(len(target))
            if target[place] == image["target"] and logits["teacher"][place].argmax() == target[place]
        ]
        assert image["index"] in rivals
        assert sure("teacher", image["index"]) == min(sure("teacher", place) for place in rivals)

    change = [sure("student", place) - sure("baseline", place) for place in range(len(target))]
    changed = [image["index"] for image in found if image["kind"] == "changed"]
    order = sorted(range(len(change)), key=change.__getitem__)
    assert sorted(changed) == sorted([*order[:6], *order[-6:]])


def test_without_a_teacher_there_are_no_soft_targets_to_show(data, tmp_path):
    _, target = all_test_images(data)
    logits = {arm: torch.zeros(len(target), 10) for arm in ("baseline", "student")}
    examples.write(tmp_path, data, logits, target)
    assert {image["kind"] for image in read(tmp_path)} == {"changed"}


def test_few_test_images_come_at_most_once_as_changed(data, tmp_path):
    _, target = all_test_images(data)
    logits = {arm: torch.zeros(8, 10) for arm in ("baseline", "student")}
    examples.write(tmp_path, data, logits, target[:8])
    places = [image["index"] for image in read(tmp_path)]
    assert sorted(places) == list(range(8))


@pytest.mark.parametrize(("shape", "seen"), [((3, 200, 100), (96, 48, 3)), ((2, 8, 8), (8, 8)), ((1, 97, 4), (96, 4))])
def test_large_and_odd_images_become_small_pictures(shape, seen):
    png = examples._png(torch.full(shape, 7, dtype=torch.uint8))
    shown = pixels({"png": png})
    assert shown.shape == seen
    assert (shown == 7).all()


def test_a_datamodule_of_ones_own_has_examples_too(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    done = command(
        "data=custom", "data._target_=tests.test_examples.own_data", "model@student=mlp_16",
        "model@teacher.model=mlp_16", *[one for one in QUICK if not one.startswith("data.")],
    )  # fmt: skip
    assert done.status == 0, done.err
    found = read(next(tmp_path.glob("outputs/*/*/result.json")).parent)
    assert pixels(found[0]).shape == (4, 4, 3)
    assert pixels(found[0]).min() == 0 and pixels(found[0]).max() == 255, "floats are stretched to what can be seen"


def own_data():
    import lightning as L
    from torch.utils.data import DataLoader, TensorDataset

    class Own(L.LightningDataModule):
        num_classes = 3

        def train_dataloader(self):
            generator = torch.Generator().manual_seed(0)
            target = torch.arange(3).repeat(10)
            images = torch.randn(30, 3, 4, 4, generator=generator) + target.view(-1, 1, 1, 1)
            return DataLoader(TensorDataset(images, target), batch_size=10)

        test_dataloader = train_dataloader

    return Own()
