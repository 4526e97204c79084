"""docs/results.md and the README's table are generated, and say what the audits say."""

import json
from pathlib import Path

import pytest

from benchmarks.results import (
    BEGIN,
    END,
    NOT_YET,
    OLDER,
    PAGE,
    README,
    audits,
    claimed,
    headline,
    render,
    rows,
    within_markers,
)
from kd.audit.__main__ import main
from tests.written import better, write_all


@pytest.fixture(scope="module")
def configs():
    return claimed()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three audits: a whole one with controls, a shortened one, and a shortened one of another experiment."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, *given in (
            ("whole", "experiment=mnist_hinton", "seeds=6", "controls=true"),
            ("a_look", "experiment=mnist_hinton", "seeds=2", "trainer.max_epochs=1"),
            ("short", "experiment=mnist_kd", "seeds=7", "data.train_limit=100"),
        ):
            write_all(given, better)
            assert main([*given, f"out={name}.json"]) == 0
    return folder


def test_the_page_is_generated(configs):
    assert PAGE.read_text(encoding="utf-8") == render(configs, audits()), "run `python -m benchmarks.results`"


def test_the_readme_has_the_generated_table(configs):
    text = README.read_text(encoding="utf-8")
    assert text == within_markers(text, headline(configs, audits())), "run `python -m benchmarks.results`"


def test_every_claim_has_a_row_and_one_without_an_audit_says_so(configs):
    table = rows(configs, {})
    assert [row[0] for row in table] == [f"[{name}](#{name})" for name in sorted(configs)]
    assert {"mnist_hinton", "mnist_omit3", "cifar_kd"} <= set(configs)
    assert {row[2] for row in table} == {NOT_YET}
    published = {row[0]: row[1] for row in table}["[mnist_hinton](#mnist_hinton)"]
    assert published == "teacher: errors 67<br>baseline: errors 146<br>student: errors 74"
    assert "digits_kd" not in configs


def test_an_audit_is_a_row_and_a_section(configs, folder):
    found = audits(folder)
    row = next(row for row in rows(configs, found) if row[0] == "[mnist_hinton](#mnist_hinton)")
    assert "teacher: errors 80 (one network)" in row[2]
    assert "student: errors 135.7 ± 8.1" in row[2]
    assert row[3:] == [
        "6",
        "+0.22 ± 0.02 [+0.21, +0.24]",
        "supported",
        "cpu, 1 thread",
        "`python -m kd.audit experiment=mnist_hinton seeds=6 controls=true`",
    ]
    page = render(configs, found)
    section = page[page.index("\n## mnist_hinton") : page.index("\n## mnist_kd")]
    assert "| 3 | 99.20% | 80 | 98.29% | 171 | 98.52% | 148 | +0.23 |" in section
    assert "student - self-KD" in section
    assert "helps: " in section
    assert "Hinton, Vinyals, Dean 2015" in section


def test_a_shortened_audit_is_marked_and_leaves_the_row_of_the_missing_one(configs, folder):
    table = rows(configs, audits(folder))
    missing, short = (row for row in table if row[0].startswith("[mnist_kd](#mnist_kd)"))
    assert missing[2] == NOT_YET
    assert "**shortened**: data.train_limit 100 of all" in short[0]
    assert "on this shortened setup: supported" in short[5]
    whole, look = (row for row in table if row[0].startswith("[mnist_hinton](#mnist_hinton)"))
    assert "shortened" not in "".join(whole)
    assert "on this shortened setup: too few seeds: 2 of 6" in look[5]
    assert NOT_YET not in "".join(whole)


def test_an_audit_whose_experiment_has_changed_is_marked(configs, folder):
    found = {"mnist_hinton": [dict(one) for one in audits(folder)["mnist_hinton"]]}
    assert f"**{OLDER}**" not in render(configs, found) + headline(configs, found)
    whole, look = found["mnist_hinton"]
    for content in (whole, look):
        content["configuration"] = content["configuration"] | {"optim.optimizer.lr": 0.5, "method.gone": 1}
    measured = [row for row in rows(configs, found) if row[0].startswith("[mnist_hinton](#mnist_hinton)")]
    assert [OLDER in row[0] for row in measured] == [True, True]
    assert f"**{OLDER}**" in headline(configs, found)
    lr = configs["mnist_hinton"].optim.optimizer["lr"]
    assert f"the experiment now has `optim.optimizer.lr={lr} method.gone=null`" in render(configs, found)


def test_tables_are_whole_and_the_readmes_links_lead_to_the_page(configs, folder):
    page, short = render(configs, audits(folder)), headline(configs, audits(folder))
    assert "](docs/results.md#mnist_hinton)" in short
    assert "kd.audit" not in short
    for text in (page, short):
        widths: list[int] = []
        for line in text.splitlines():
            if line.startswith("|"):
                widths.append(line.replace("\\|", "").count("|"))
            else:
                assert len(set(widths)) <= 1
                widths = []


def test_the_table_goes_between_the_markers_only():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert within_markers(text, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    for broken in ("before", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{text}{text}"):
        with pytest.raises(SystemExit, match="once each"):
            within_markers(broken, "new")


def test_what_is_no_audit_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(SystemExit, match="no audit of schema 2"):
        audits(tmp_path)
