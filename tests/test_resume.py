"""A training that is cut off within an epoch ends bit-identical to one that is not: weights, curves, results."""

import errno
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from kd import build, launch
from kd.cached_teacher import Cached
from kd.errors import ConfigError
from kd.files import write_error
from kd.folder import prepare, refuse_changed
from kd.quiet import quiet
from kd.recipe import plan
from kd.saving import Save
from kd.store import Store
from kd.train import Trainings
from tests.commands import QUICK, SMALL_CNNS, Command, configured

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.stem for path in ROOT.glob("conf/method/*.yaml"))
# four batches an epoch, the last one smaller; dropout and augmentation on, so that a wrong random state shows
SHORT = (
    *("trainer.max_epochs=2", "trainer.accelerator=cpu", "data.augment=shift", "logger=csv"),
    *("data.batch_size=12", "data.train_limit=44", "data.val=10", "data.test_limit=4"),
    *("optim=adamw", "teacher=random"),  # its schedule goes up and down: one_cycle
)
DROPPING = ("model@student=wrn_16_1", "student.dropout=0.3")
CASES = {
    **{name: (f"method={name}", *SMALL_CNNS) for name in METHODS},
    "dropout": ("method=kd", *DROPPING),
    "ema": ("teacher=ema", "teacher.decay=0.5", "method=kd", *DROPPING),
    "no_validation": ("method=kd", "data.val=0", "optim=sgd", *DROPPING),
    "bf16": ("method=dkd", "trainer.precision=bf16-mixed", "model@student=resnet8"),
    "clipped": ("method=kd", "trainer.gradient_clip_val=0.1", "model@student=resnet8"),
    "pruned": (
        *("method=kd", "model@student=resnet20_pruned", "student.network.depth=8"),
        *("student.ramp=3", "student.every=1"),
    ),
    "int8": ("method=kd", "model@student=resnet20_int8", "student.network.depth=8"),
    "calls_of_two_steps": ("method=kd", "trainer.steps_per_call=2", *DROPPING),
    "late_term": (
        *("method=hint", "+method.terms.hint.schedule.start_epoch=1", "optim.optimizer.fused=false"),
        *SMALL_CNNS,
    ),
}


class CutOff(BaseException):
    """As sudden as a kill, and no signal."""


def train(folder: Path, overrides: tuple[str, ...]) -> None:
    """Train a student as a new process would: nothing but the folder is left of an earlier attempt."""
    torch.manual_seed(len(list(folder.rglob("*"))))  # nothing may hang on what a process did before
    config = configured(*SHORT, *overrides)
    data = build.data(config)
    planned = plan(config, data)
    said = Console(quiet=True)
    trainings = Trainings(
        data,
        Store(folder / "store"),
        folder / "part",
        config.trainer,
        said,
        lambda *_: None,
        cache=config.teacher.cache,
    )
    trainings.obtain(planned.student)


def train_in_parts(folder: Path, overrides: tuple[str, ...], monkeypatch, after: list[int], then=None) -> int:
    """Train, cut off after these steps of each network, and go on until it is done; how many cuts there were."""
    original, left = Save.on_train_batch_end, {}

    def save_and_end(self, trainer, module, outputs, batch, batch_idx):
        steps = left.setdefault(self.path.name, list(after))
        if steps and trainer.fit_loop.total_batch_idx + 1 == steps[0]:
            assert not trainer.is_last_batch
            steps.pop(0)
            self._save(trainer)
            raise CutOff
        original(self, trainer, module, outputs, batch, batch_idx)

    cuts = 0
    with monkeypatch.context() as patch:
        patch.setattr(Save, "on_train_batch_end", save_and_end)
        while True:
            try:
                train(folder, overrides)
                break
            except CutOff:
                cuts += 1
                if then is not None:
                    raise then from None
    assert cuts == sum(len(after) - len(steps) for steps in left.values())
    return cuts


def assert_same(one: Path, other: Path) -> None:
    """The same networks with the same bits, and the same curves."""
    found = [sorted(str(file.relative_to(root)) for file in root.glob("store/*/*")) for root in (one, other)]
    assert found[0] == found[1] and found[0]
    for name in found[0]:
        if name.endswith(".csv"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
        if name.endswith(".safetensors"):
            expected, weights = load_file(one / name), load_file(other / name)
            assert [key for key, value in expected.items() if not value.equal(weights[key])] == [], name


@pytest.mark.parametrize("case", CASES)
def test_after_a_cut_within_an_epoch_a_training_ends_bit_identical(case, tmp_path, monkeypatch):
    quiet()
    train(tmp_path / "whole", CASES[case])
    cuts = train_in_parts(tmp_path / "parts", CASES[case], monkeypatch, [1, 3] if case.startswith("calls") else [2, 5])
    assert cuts >= 2
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_the_rest_of_an_epoch_has_the_same_teacher_as_its_beginning(tmp_path, monkeypatch):
    """Kept logits, where a user insists on them, may differ from the running teacher's in their last bits."""
    served, original = [], Cached.output
    monkeypatch.setattr(Cached, "output", lambda self, batch: served.append(self._in_epoch) or original(self, batch))
    monkeypatch.setattr(Cached, "_forward", lambda self, batch, was=Cached._forward: was(self, batch) * 1.00001)
    quiet()
    case = ("method=kd", "teacher.cache=only", *DROPPING)
    train(tmp_path / "whole", case)
    assert train_in_parts(tmp_path / "parts", case, monkeypatch, [2, 5]) == 2
    assert all(served) and len(served) == 2 * 8
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_are_read_in_workers_go_on_within_an_epoch(workers, tmp_path, monkeypatch):
    quiet()
    images = torch.randint(0, 256, (44, 8, 8), dtype=torch.uint8).numpy()
    for number, image in enumerate(images):
        for split in ("train", "test"):
            file = tmp_path / "data" / split / f"class{number % 3}" / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    from_files = (
        *("data=imagefolder", f"data.root={tmp_path / 'data'}", "data.image_size=8", "data.channels=1"),
        *("data.batch_size=8", "data.val=4", "data.test_limit=4", "data.train_limit=40", f"data.num_workers={workers}"),
        *("method=kd", *DROPPING),
    )
    train(tmp_path / "whole", from_files)
    assert train_in_parts(tmp_path / "parts", from_files, monkeypatch, [3, 8]) == 2
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_another_number_of_steps_per_call_is_refused_within_an_epoch(tmp_path, monkeypatch):
    quiet()
    case = ("method=hard", *DROPPING)
    with pytest.raises(StopIteration):
        train_in_parts(tmp_path, case, monkeypatch, [2], then=StopIteration)
    with pytest.raises(ConfigError, match=r"trainer\.steps_per_call=1, but this run has 2\. Continue with 1"):
        train(tmp_path, (*case, "trainer.steps_per_call=2"))
    train(tmp_path, case)


def test_two_processes_go_on_within_an_epoch(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", launch.MEETING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    assert launch.launch([str(tmp_path)], "tests.two_resumed", processes=2) == 0
    assert_same(tmp_path / "whole", tmp_path / "parts")


# --- a changed configuration ------------------------------------------------------------------------------------------

RUN = (*QUICK, "hydra.run.dir=run", "trainer.max_epochs=3")


def test_an_unfinished_run_is_not_continued_with_other_settings(tmp_path, monkeypatch, capsys):
    command = Command(tmp_path, monkeypatch, capsys)
    command.cut("student", *RUN)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    done = command(*RUN, "method.temperature=9", "seed=4", "optim=sgd")
    assert done.status == 2
    for line in ("seed: 0 -> 4", "method.temperature: ", " -> 9", "optim.optimizer._target_: torch.optim.Adam -> "):
        assert line in done.err
    assert "optim.optimizer.momentum: (new) -> 0.9" in done.err
    assert "Only the number of epochs, logging and hardware may change" in done.err
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    hardware = ("trainer.threads=1", "trainer.accelerator=cpu", "trainer.checkpoint_minutes=1", "debug=true")
    done = command(*RUN, *hardware)
    assert done.status == 0, done.err
    assert "student  continuing after epoch 1 of 3" in done.out


@pytest.mark.parametrize("left", [b"", b"{}\n", b"\xff\xfe", b"\0\0\0", b"seed: [", b"- 1\n"])
def test_a_configuration_that_was_cut_off_does_not_keep_a_run_from_continuing(left, tmp_path):
    (tmp_path / "config.yaml").write_bytes(left)
    refuse_changed(tmp_path, configured())


def test_on_a_full_disk_the_configuration_stays_as_it_was(tmp_path, monkeypatch):
    prepare(tmp_path, configured())
    before = (tmp_path / "config.yaml").read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(tmp_path, configured("seed=1"))
    write_error(tmp_path, ValueError("why"))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_an_error_about_a_name_that_is_no_text_is_written_down(tmp_path):
    assert write_error(tmp_path, ValueError("what \udcff says")) == "ValueError: what \udcff says"
    assert (tmp_path / "error.txt").read_text().startswith("ValueError: what \\udcff says")
