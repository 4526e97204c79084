"""`python -m kd.list`: every experiment, method, network, dataset and teacher, one line each."""

import sys
from pathlib import Path

from kd.cli import conf_dir

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


def listing(folder: Path) -> str:
    """All groups of a configuration folder as aligned text."""
    blocks = []
    for group, title in TITLES.items():
        files = sorted(p for p in (folder / group).glob("*.yaml") if not p.stem.startswith("_"))
        width = max(len(path.stem) for path in files)
        rows = [f"  {path.stem:<{width}}  {description(path)}" for path in files]
        blocks.append("\n".join([title, *rows]))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    try:
        print(listing(conf_dir()))
    except BrokenPipeError:  # piped into head
        sys.exit(0)
