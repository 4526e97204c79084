"""Bad input, as a user types it: a clear message, the promised exit status, and nothing trained."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# the whole command, and what its message must say
CHEAP = [
    (["method.temprature=3"], 2, ["'method.temprature'", "Did you mean 'method.temperature'"]),
    (["metod.temperature=4"], 2, ["Unknown key 'metod'", "Did you mean 'method'", "Known keys"]),
    (
        ["method.terms.hint.student=layer1"],
        2,
        ["Unknown key 'method.terms.hint'", "Known keys of method.terms: ce, kd"],
    ),
    (["+foo=1"], 2, ["Unknown key 'foo'", "Known keys"]),
    (["+method.foo=1"], 2, ["Unknown key 'method.foo'", "alpha, beta"]),
    (["method.temperature=hot"], 2, ["'hot'", "method.temperature", "Float"]),
    (["method.temperature=0"], 2, ["`method.temperature`", "above 0", "0.0"]),
    (["method.alpha=1.5"], 2, ["`method.alpha`", "[0, 1]", "1.5", "method.beta"]),
    (["seed=-1"], 2, ["`seed`", "-1"]),
    (["experiment=digit_kd"], 2, ["Unknown experiment 'digit_kd'", "Did you mean 'digits_kd'", "mnist_hinton"]),
    (["method=kdd"], 2, ["Unknown method 'kdd'", "mixed_target"]),
    (["model@student=resnet21"], 2, ["Unknown model 'resnet21'", "resnet20"]),
    (["data=mnits"], 2, ["Unknown data 'mnits'", "Did you mean 'mnist'"]),
    (["data.omit=[3]", "data.keep=[4]"], 2, ["not both"]),
    (["data.omit_from=[pupil]"], 2, ["'pupil'", "baseline, student, teacher"]),
    (["teacher=checkpoint"], 2, ["teacher.path"]),
    (["teacher.generations=2"], 2, ["teacher=self"]),
    (
        ["teacher=virtual", "teacher.cache=only"],
        2,
        ["teacher.cache=only", "teacher=virtual", "no network", "auto or off"],
    ),
    (["teacher.cache=on"], 2, ["teacher.cache", "auto, off, only"]),
    (["trainer.devices=2"], 2, ["`trainer.devices`", "one device"]),
    (["trainer.precision=8"], 2, ["trainer.precision", "bf16-mixed"]),
    (["logger.kind=tensorbord"], 2, ["logger", "wandb"]),
    (["teacher=self", "model@teacher.model=mlp"], 2, ["model@teacher.model=mlp has no effect"]),
    (["trainer.precision=16-mixed", "trainer.gradient_clip_val=1"], 2, ["optim.optimizer.fused=false"]),
    (["store.root="], 2, ["store.root", "empty"]),
    (["nonsense"], 2, ["'nonsense'", "key=value"]),
]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m kd.run` in an empty folder, without W&B and without a cache from elsewhere."""
    return subprocess.run(
        [sys.executable, "-m", "kd.run", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(("arguments", "status", "words"), CHEAP, ids=[case[0][0] for case in CHEAP])
def test_a_mistake_is_named_before_torch_is_loaded(arguments, status, words, tmp_path, monkeypatch):
    # a torch that cannot be imported proves that the check does without it
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["--info", "defaults"]])
def test_help_and_config_need_no_torch(arguments, tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "method" in done.stdout


def test_debug_true_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = command("method.temperature=0", "debug=true", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
