"""What the documentation says is what the code does."""

import json
import re
from pathlib import Path

from benchmarks import performance
from benchmarks.methods import DATA, METHODS, PAGE, render

ROOT = Path(__file__).parents[1]


def test_the_table_of_methods_is_generated_and_whole():
    content = json.loads(DATA.read_text(encoding="utf-8"))
    assert sorted(content["cost"]) == sorted(content["accuracy"]) == METHODS, (
        "run `python -m benchmarks.methods cost` and `... accuracy`"
    )
    assert PAGE.read_text(encoding="utf-8") == render(content), "run `python -m benchmarks.methods`"


def test_the_pages_of_speed_are_generated():
    for page, text in performance.pages().items():
        assert page.read_text(encoding="utf-8") == text, "run `python -m benchmarks.performance page`"


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


def test_the_figures_of_the_long_trials_are_those_that_were_recorded():
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    soak, fuzz = (json.loads((ROOT / "docs" / f"{name}.json").read_text(encoding="utf-8")) for name in ("soak", "fuzz"))
    counts = ("kills", "resumes", "resumes_within_an_epoch", "runs", "bit_identical", "corrupt_files", "lost_results")
    told = [int(value.replace(",", "")) for value in re.findall(r"\| ([\d,]+) \|$", page, re.MULTILINE)]
    fuzzed = [one[count] for one in (fuzz, fuzz["guided"]) for count in ("inputs", "other_errors")]
    assert told == [*(soak[count] for count in counts), *fuzzed]
