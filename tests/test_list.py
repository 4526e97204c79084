"""`python -m kd.list`: everything there is, with a line each."""

from kd.cli import conf_dir
from kd.list import TITLES, description, listing


def test_every_config_file_is_listed_with_a_description():
    text = listing(conf_dir())
    for group in TITLES:
        for path in (conf_dir() / group).glob("*.yaml"):
            if not path.stem.startswith("_"):
                assert description(path), path
                assert f"  {path.stem} " in text or f"  {path.stem:<16} " in text
