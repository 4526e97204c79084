"""`python -m kd.list`: everything there is, described, and what was published of the experiments."""

import subprocess
import sys

from kd.cli import conf_dir
from kd.list import TITLES, claim, description, listing


def test_every_config_file_is_listed_with_a_description():
    lines = [" ".join(block.split()) for block in listing(conf_dir()).split("\n\n")]
    for group, block in zip(TITLES, lines, strict=True):
        for path in (conf_dir() / group).glob("*.yaml"):
            if not path.stem.startswith("_"):
                assert description(path), path
                assert f" {path.stem} {description(path)}" in block


def test_experiments_say_what_was_published():
    block = " ".join(listing(conf_dir()).split("\n\n")[0].split())
    shown = [path for path in (conf_dir() / "experiment").glob("*.yaml") if not path.stem.startswith("_")]
    claimed = [path for path in shown if claim(path)]
    assert len(claimed) >= 16
    for path in claimed:
        assert f"{path.stem} {description(path)} published: {claim(path)}" in block
    assert block.count("published:") == len(claimed)
    assert "_cifar_kd" not in block


def test_the_list_is_readable_in_120_columns():
    assert max(len(line) for line in listing(conf_dir()).splitlines()) <= 120


def test_the_list_does_without_torch():
    code = "import sys, kd.list; kd.list.listing(kd.list.conf_dir()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
