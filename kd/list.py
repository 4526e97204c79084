"""`python -m kd.list`: every experiment with its claim, every method, network, dataset and teacher, described."""

import argparse
import sys
import textwrap
from pathlib import Path

from omegaconf import OmegaConf

from kd.cli import conf_dir

WIDTH = 120

TITLES = {
    "experiment": "Experiments (experiment=NAME)",
    "method": "Methods (method=NAME)",
    "model": "Networks (model@student=NAME, model@teacher.model=NAME)",
    "data": "Datasets (data=NAME)",
    "teacher": "Teachers (teacher=NAME)",
    "optim": "Optimisers (optim=NAME)",
    "optim/schedule": "Learning-rate schedules (optim/schedule=NAME)",
}


def description(path: Path) -> str:
    """The first comment of a config file that is not a Hydra directive."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and "@package" not in line:
            return line.lstrip("# ")
    return ""


def claim(path: Path) -> str:
    """What a config file says was published, "" if nothing."""
    return str(OmegaConf.select(OmegaConf.load(path), "claim.statement") or "")


def listing(folder: Path) -> str:
    """All groups of a configuration folder as aligned text."""
    blocks = []
    for group, title in TITLES.items():
        files = sorted(p for p in (folder / group).glob("*.yaml") if not p.stem.startswith("_"))
        width = max(len(path.stem) for path in files)
        rows = []
        for path in files:
            rows += _wrapped(f"  {path.stem:<{width}}  ", description(path))
            if group == "experiment":
                rows += _wrapped(" " * (width + 4) + "published: ", claim(path))
        blocks.append("\n".join([title, *rows]))
    return "\n\n".join(blocks)


def _wrapped(start: str, text: str) -> list[str]:
    """A text in lines of at most `WIDTH`, those after the first indented to where it starts; no text, no line."""
    indent = " " * len(start)
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m kd.list", description=__doc__).parse_args()
    try:
        print(listing(conf_dir()))
    except BrokenPipeError:  # piped into head
        sys.exit(0)
