"""A teacher near chance is questioned before it teaches anybody; one that teaches stays as it is, to the bit."""

import random

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kd.chance import near_chance
from kd.folder import config_hash
from kd.seals import Seals, fingerprint
from tests.commands import Command, configured

QUICK = ("trainer.max_epochs=2", "data.train_limit=192", "logger=csv", "latency=false")
SMALL = ("model@student=mlp_16", "model@teacher.model=mlp_16")
#: a teacher that does not learn, while the student does
LAZY = ("+optim@teacher.optim=sgd", "teacher.optim.optimizer.lr=1e-12")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys) -> Command:
    return Command(tmp_path, monkeypatch, capsys)


def test_near_chance_is_what_guesses_are_and_hardly_anything_else():
    draw, images = random.Random(0), 200
    guesses = [sum(draw.random() < 0.1 for _ in range(images)) / images for _ in range(2000)]
    taken_for_better = sum(not near_chance(guess, images, 0.1) for guess in guesses) / len(guesses)
    assert 0 < taken_for_better < 0.006
    assert near_chance(0.0, images, 0.1)
    assert not near_chance(0.17, images, 0.1)
    assert near_chance(0.17, 20, 0.1), "few images show less"
    assert not near_chance(0.11, 50_000, 0.1)
    assert near_chance(1.0, 10, 1.0), "of a single class nothing can be known"


def test_a_teacher_near_chance_is_questioned_before_its_student_is_trained(command):
    done = command(*QUICK, *SMALL, *LAZY)
    assert done.status == 2
    assert "Teacher validation accuracy " in done.err
    assert "intended? Then set teacher.allow_weak=true" in done.err
    assert "teacher  done" in done.out
    assert "baseline" not in done.out and "student  " not in done.out
    intended = command(*QUICK, *SMALL, *LAZY, "teacher.allow_weak=true")
    assert intended.status == 0, intended.err
    assert "teacher  found in" in intended.out
    assert done.out.splitlines()[0] == intended.out.splitlines()[0], "the same run folder: no result depends on it"


@pytest.mark.parametrize("given", [("teacher=random",), (*LAZY, "data.val=0"), ("debug=smoke", *LAZY)])
def test_a_control_is_not_questioned_nor_one_of_which_nothing_is_known(command, given):
    assert command(*QUICK, *SMALL, *given).status == 0


def test_a_file_of_weights_near_chance_is_questioned_before_anything_is_trained(command, tmp_path):
    checkpoint = (*QUICK, *SMALL, "teacher=checkpoint")
    folder = command.quick(*SMALL, "trainer.max_epochs=40")
    done = command(*checkpoint, f"teacher.path={folder / 'student.safetensors'}")
    assert done.status == 0, done.err
    state = {name: torch.zeros_like(value) for name, value in load_file(folder / "student.safetensors").items()}
    path = tmp_path / "nothing.pt"
    torch.save(state, path)
    done = command(*checkpoint, f"teacher.path={path}", "seed=1")
    assert done.status == 2
    assert str(path) in done.err and "teacher.allow_weak=true" in done.err
    assert "training" not in done.out
    assert command(*checkpoint, f"teacher.path={path}", "seed=1", "teacher.allow_weak=true").status == 0


def test_what_is_allowed_decides_no_result():
    assert config_hash(configured()) == config_hash(configured("teacher.allow_weak=true"))


# --- seals ------------------------------------------------------------------------------------------------------------


class Drifting(nn.Module):
    """Counts its calls in a buffer, in eval mode too: what batch norm left in train mode does to a teacher."""

    def __init__(self, num_classes, image_shape, **_):
        super().__init__()
        self.flatten, self.fc = nn.Flatten(), nn.Linear(64, num_classes)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, image):
        self.seen += 1
        return self.fc(self.flatten(image))


def test_a_teacher_that_changes_while_it_teaches_stops_the_run(command):
    target = "teacher.model._target_=tests.test_teacher_contract.Drifting"
    with pytest.raises(AssertionError, match="The frozen teacher Drifting has changed while it taught"):
        command(*QUICK, *SMALL, target, "teacher.allow_weak=true")
    assert len(list(command.folder.glob("outputs/store/*/weights.safetensors"))) == 2, "teacher and baseline"


def test_a_fingerprint_is_of_every_bit_and_of_nothing_else():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(2, 2)).to(torch.float32)
    network[2].to(torch.bfloat16)
    before = fingerprint(network)
    network.train().requires_grad_(False).to(memory_format=torch.channels_last)
    assert fingerprint(network) == before
    for name, value in network.state_dict().items():
        saved = value.clone()
        value[(-1,) * value.ndim] += 1
        assert fingerprint(network) != before, name
        value.copy_(saved)
    assert fingerprint(network) == before
    network[1].running_mean.neg_()  # 0 and -0 are equal, and not the same
    assert fingerprint(network) != before


def test_seals_are_looked_at_once():
    seals, network = Seals(), nn.BatchNorm1d(2)
    seals.take([network])
    network(torch.randn(4, 2))
    with pytest.raises(AssertionError, match="fault in the code"):
        seals.check()
    seals.check()
