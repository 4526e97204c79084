"""What the documentation says is what the code does."""

import json
import re
from pathlib import Path

from benchmarks.methods import DATA, METHODS, PAGE, render

ROOT = Path(__file__).parents[1]


def test_the_table_of_methods_is_generated_and_whole():
    content = json.loads(DATA.read_text(encoding="utf-8"))
    assert sorted(content["cost"]) == sorted(content["accuracy"]) == METHODS, (
        "run `python -m benchmarks.methods cost` and `... accuracy`"
    )
    assert PAGE.read_text(encoding="utf-8") == render(content), "run `python -m benchmarks.methods`"


def test_every_method_trained_better_than_chance():
    for name, arms in json.loads(DATA.read_text(encoding="utf-8"))["accuracy"].items():
        assert min(arms["student"]) > 0.2, name


def test_links_and_named_files_exist():
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)
        for name in re.findall(r"`((?:conf|kd|docs|tests)/[\w/.]+\.\w+)`", text):
            assert (ROOT / name).exists() or "NAME" in name, (page, name)
