"""The comparison of a sweep: what its pictures pool, choose, leave empty and leave out."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kd.report import write_page
from kd.report.configurations import grids, pools, recipe_text, spread
from kd.report.page import FIGURES
from kd.report.parallel import left_out
from kd.report.read import Run, read_run
from kd.report.varied import settings, unusual, varied
from tests.report_folders import Page, digits, fake_run, plots, sweep

#: two seeds of three cells out of four; the middle one is best in validation
CELLS = {
    (1.0, 0.1, 0): 0.70,
    (1.0, 0.1, 1): 0.74,
    (4.0, 0.1, 0): 0.90,
    (4.0, 0.1, 1): 0.86,
    (4.0, 0.9, 0): 0.60,
}
SVG = "{http://www.w3.org/2000/svg}"


def read(folders: list[Path]) -> list[Run]:
    return [read_run(folder) for folder in folders]


def picture(folder: Path, name: str) -> ElementTree.Element:
    return ElementTree.parse(folder / FIGURES / f"{name}.svg").getroot()


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def titles(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}title")]


def test_cells_pool_seeds_and_missing_ones_are_empty(tmp_path: Path) -> None:
    write_page(sweep(tmp_path / "runs", CELLS), tmp_path / "report.html")
    validation = picture(tmp_path, "heat_validation")
    assert [text for text in texts(validation) if "%" in text] == ["72.00%", "88.00%", "60.00%"]
    assert [text for text in texts(validation) if text.startswith("n =")] == ["n = 2", "n = 2", "n = 1"]
    assert texts(validation).count("no run") == 1
    assert titles(validation)[1] == "T = 4, alpha = 0.1\nvalidation accuracy 88.00%, sd 2.83 points\nseeds 0, 1"
    assert titles(validation)[2] == "T = 4, alpha = 0.9\nvalidation accuracy 60.00%\nseeds 0"
    difference = picture(tmp_path, "heat_difference")
    assert [text for text in texts(difference) if re.match(r"[+-]", text)] == ["-3.00", "+13.00", "-15.00"]
    for root in (validation, difference):  # the same cell in both: the choice is validation's
        frames = [element for element in root.iter(f"{SVG}rect") if element.get("class") == "best"]
        cells = [element for element in root.iter(f"{SVG}rect") if element.get("class") in ("hit", "miss")]
        assert [(frame.get("x"), frame.get("y")) for frame in frames] == [(cells[1].get("x"), cells[1].get("y"))]
    heat = plots(Page(tmp_path / "report.html"))["heat_validation"]["data"][0]
    assert [[cell is None for cell in row] for row in heat["z"]] == [[False, False], [True, False]]
    assert "never by the test difference" in Page(tmp_path / "report.html").words


def test_accuracy_by_temperature_has_a_line_for_each_alpha(tmp_path: Path) -> None:
    write_page(sweep(tmp_path / "runs", CELLS), tmp_path / "report.html")
    twin = plots(Page(tmp_path / "report.html"))
    lines = {trace["name"]: trace for trace in twin["t_validation"]["data"]}
    assert list(lines) == ["alpha = 0.1", "alpha = 0.9"]
    assert lines["alpha = 0.1"]["x"] == [1, 4]
    assert lines["alpha = 0.1"]["y"] == pytest.approx([0.72, 0.88])
    assert lines["alpha = 0.1"]["error_y"]["array"] == pytest.approx([0.0282843, 0.0282843], rel=1e-4)
    assert twin["t_test"]["data"][0]["y"] == pytest.approx([0.67, 0.83])
    assert "T = 4, alpha = 0.1\n88.00 ± 2.83 %, n = 2" in titles(picture(tmp_path, "t_validation"))


@pytest.mark.parametrize("cells", [{(4.0, 0.1, 0): 0.7, (4.0, 0.1, 1): 0.8}, {(4.0, 0.1, 0): 0.7, (4.0, 0.9, 0): 0.8}])
def test_pictures_that_would_show_nothing_are_not_drawn(tmp_path: Path, cells: dict[Any, float]) -> None:
    """One cell has no map; one temperature has no curve over temperatures."""
    write_page(sweep(tmp_path / "runs", cells), tmp_path / "report.html")
    drawn = {path.stem for path in (tmp_path / FIGURES).iterdir()}
    maps = {"heat_validation", "heat_difference"} if (4.0, 0.9, 0) in cells else set()
    assert drawn == {"parallel", "students"} | maps


def test_without_validation_nothing_is_chosen(tmp_path: Path) -> None:
    folders = sweep(tmp_path / "runs", CELLS)
    for folder in folders:
        content = json.loads((folder / "result.json").read_text())
        content["arms"]["student"]["val"] = None
        (folder / "result.json").write_text(json.dumps(content))
    write_page(folders, tmp_path / "report.html")
    drawn = {path.stem for path in (tmp_path / FIGURES).iterdir()}
    assert "heat_validation" not in drawn and "t_validation" not in drawn and "heat_difference" in drawn
    assert not [element for element in picture(tmp_path, "heat_difference").iter() if element.get("class") == "best"]
    assert "test accuracy is not what T and alpha are chosen by" in Page(tmp_path / "report.html").words


def test_runs_of_other_settings_are_never_pooled(tmp_path: Path) -> None:
    folders = sweep(tmp_path / "a", CELLS) + sweep(tmp_path / "b", CELLS)
    for folder in folders[len(CELLS) :]:
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("val: 200", "val: 400"))
    found = grids(read(folders))
    assert [grid.title for grid in found] == ["fake_kd, kd, val: 200", "fake_kd, kd, val: 400"]
    assert [sum(map(len, grid.cells.values())) for grid in found] == [len(CELLS)] * 2
    write_page(folders, tmp_path / "report.html")
    assert (tmp_path / FIGURES / "heat_validation_2.svg").is_file()


def test_a_seed_that_comes_twice_counts_once(tmp_path: Path) -> None:
    runs = read(sweep(tmp_path / "a", CELLS) + sweep(tmp_path / "b", CELLS))
    assert [len(cell) for cell in grids(runs)[0].cells.values()] == [2, 2, 1]
    assert [len(pool) for pool in pools(runs)] == [2, 2]


def test_a_spread_is_not_of_some_of_the_seeds() -> None:
    assert spread([0.5, None]) is None and spread([]) is None
    one = spread([0.5])
    assert one is not None and (one.mean, one.sd, one.n) == (0.5, None, 1)


def test_recipe_text_leaves_out_further_keys_beside_the_usual_ones() -> None:
    text = "seed: 1\ndata:\n  root: a\n  val: 2\nmethod:\n  alpha: 0.1\n  terms:\n    alpha: 1\n"
    assert recipe_text(text, method=("alpha",), data=("val",)) == "data:\nmethod:\n  terms:\n    alpha: 1"


def test_every_run_is_a_line_across_what_differs(tmp_path: Path) -> None:
    folders = sweep(tmp_path / "runs", CELLS)
    write_page(folders, tmp_path / "report.html")
    lines = list(picture(tmp_path, "parallel").iter(f"{SVG}polyline"))
    assert [line.get("class") for line in lines] == [f"run {sign}" for sign in ("miss", "miss", "hit", "hit", "miss")]
    said = [line.findtext(f"{SVG}title") or "" for line in lines]
    assert said[2].split("\n")[1:] == [
        "T  4",
        "alpha  0.1",
        "seed  0",
        "validation  90.00%",
        "test  85.00%",
        "difference  +15.00 points",
    ]
    twin = plots(Page(tmp_path / "report.html"))["parallel"]["data"][0]["dimensions"]
    assert [one["label"] for one in twin] == ["T", "alpha", "seed", "validation, %", "test, %", "difference, points"]
    assert twin[3]["values"] == [70, 74, 90, 86, 60]


def test_settings_are_read_by_their_dotted_keys() -> None:
    text = "seed: 1\ndata:\n  omit:\n  - 3\n  - 5\n  keep: []\nterms:\n- kind: a\n  weight: 2\nclaim: null\n"
    found = {"seed": "1", "data.omit": "3, 5", "data.keep": "[]", "terms": "kind: a", "terms.weight": "2"}
    assert settings(text) == found | {"claim": "null"}


def test_runs_say_in_which_other_settings_they_differ(tmp_path: Path) -> None:
    folders = sweep(tmp_path / "runs", CELLS)
    assert unusual(read(folders)) == [""] * len(CELLS)  # by T, alpha and seed alone, which have columns
    write_page(folders, tmp_path / "same.html")
    assert "Below a name" not in Page(tmp_path / "same.html").words
    for folder, lr in zip(folders[:2], (1e-2, 1e-1), strict=True):
        with (folder / "config.yaml").open("a") as file:
            file.write(f"optim:\n  lr: {lr}\n  <b>: {{}}\n")
    for folder in folders[2:]:
        with (folder / "config.yaml").open("a") as file:
            file.write("optim:\n  lr: 0.001\n  <b>: {}\n")
    runs = read(folders)
    assert varied(runs) == {"optim.lr": ["0.01", "0.1", "0.001", "0.001", "0.001"]}
    assert unusual(runs) == ["optim.lr=0.01", "optim.lr=0.1", "", "", ""]
    write_page(folders, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert page.row("T=1,alpha=0.1,seed=1optim.lr=0.1") and page.row("T=4,alpha=0.1,seed=0")
    dimensions = plots(page)["parallel"]["data"][0]["dimensions"]
    (folders[4] / "config.yaml").unlink()
    assert unusual(read(folders)) == ["optim.lr=0.01", "optim.lr=0.1", "", "", ""]
    assert dimensions[3]["label"] == "lr"
    assert (dimensions[3]["ticktext"], dimensions[3]["values"]) == (["0.001", "0.01", "0.1"], [1, 2, 0, 0, 0])
    assert "which have no axis" not in page.words


def test_means_of_two_configurations_are_told_apart(tmp_path: Path) -> None:
    folders = sweep(tmp_path / "a", CELLS) + sweep(tmp_path / "b", dict(list(CELLS.items())[:2]))
    for folder in folders[len(CELLS) :]:
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("val: 200", "val: 400"))
    write_page(folders, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert page.row("fake_kddata.val=400")[:4] == [("kd", None), ("1", 1.0), ("0.1", 0.1), ("2", None)]


def test_settings_too_many_for_axes_are_counted(tmp_path: Path) -> None:
    folders = sweep(tmp_path / "runs", CELLS)
    with (folders[0] / "config.yaml").open("a") as file:
        file.write("optim:\n  a: 1\n  b: 2\n  c: 3\n  d: 4\n")
    assert unusual(read(folders))[0] == "optim.a=1, optim.b=2, optim.c=3, 1 more"
    write_page(folders, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "The runs also differ in 4 other settings, which have no axis." in page.words
    assert len(plots(page)["parallel"]["data"][0]["dimensions"]) == 6


def test_a_result_that_some_runs_lack_is_named_as_left_out(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / "a", digits()), fake_run(tmp_path / "b", digits(val=False, seed=1))]
    assert left_out(read(folders)) == ["validation"]
    write_page(folders, tmp_path / "report.html")
    assert "Not measured in every run, and left out: validation." in Page(tmp_path / "report.html").words
    assert left_out(read([folders[1]])) == []


def test_students_curves_are_alike_for_seeds_and_not_drawn_when_too_many(tmp_path: Path) -> None:
    write_page(sweep(tmp_path / "few", CELLS), tmp_path / "few.html")
    traces = plots(Page(tmp_path / "few.html"))["students"]["data"]
    labels = ["T = 1, alpha = 0.1"] * 2 + ["T = 4, alpha = 0.1"] * 2 + ["T = 4, alpha = 0.9"]
    assert [trace["name"] for trace in traces] == labels
    assert [trace["showlegend"] for trace in traces] == [True, False, True, False, True]
    assert traces[0]["line"] == traces[1]["line"] != traces[2]["line"]
    many = {(1.0, 0.1, seed): 0.7 for seed in range(25)}
    write_page(sweep(tmp_path / "runs", many), tmp_path / "many" / "report.html")
    assert not (tmp_path / "many" / FIGURES / "students.svg").exists()
    assert "More than 24 curves are not drawn" in Page(tmp_path / "many" / "report.html").words


def test_of_many_published_numbers_the_first_stands_beside_the_students(tmp_path: Path) -> None:
    folders = sweep(tmp_path / "runs", CELLS)
    content = json.loads((folders[0] / "result.json").read_text())
    published = {"omitted_errors": 133, "errors": 206, "corrected_errors": 109}
    claim = {"source": "a", "statement": "b", "method": None, "published": {"student": published}}
    content["claim"] = {
        **claim,
        "measured": {"student": {"omitted_errors": 80, "errors": 162, "corrected_errors": 118}},
    }
    (folders[0] / "result.json").write_text(json.dumps(content))
    write_page(folders, tmp_path / "report.html")
    rows = [row for row in Page(tmp_path / "report.html").rows if row[0][0] == "T=1,alpha=0.1,seed=0"]
    assert rows[0][9][0] == "206 errors (162)and 2 more"


def test_published_numbers_stand_beside_the_students(tmp_path: Path) -> None:
    folders = sweep(tmp_path / "runs", CELLS)
    for folder, measured in zip(folders[:2], (92, 94), strict=True):
        content = json.loads((folder / "result.json").read_text())
        published = {"teacher": {"errors": 67}, "student": {"errors": 74, "accuracy": 0.9926}}
        found = {"teacher": {"errors": 60}, "student": {"errors": measured, "accuracy": 0.99}}
        content["claim"] = {"source": "a", "statement": "b", "method": "dkd", "published": published, "measured": found}
        (folder / "result.json").write_text(json.dumps(content))
    write_page(folders, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    rows = [row for row in page.rows if row[0][0] == "T=1,alpha=0.1,seed=0"]
    assert rows[0][9][0] == "74 errors (92)99.26% (99.00%)method dkd"
    assert page.row("T=4,alpha=0.9,seed=0")[8][0] == "-"
    assert page.row("fake_kd")[8][0] == "74 errors (93)99.26% (99.00%)method dkd"


def test_jobs_without_a_result_are_named_on_the_page_and_in_the_terminal(tmp_path, capsys):
    from kd.report.__main__ import main

    folders = sweep(tmp_path / "outputs" / "sweep-1", CELLS)
    jobs = [{"name": folder.name, "overrides": ["seed=0"], "state": "done", "error": None} for folder in folders]
    jobs.append({"name": "x", "overrides": ["method.temperature=9"], "state": "failed", "error": {"message": "<b>NaN"}})
    jobs += [{"name": f"y{n}", "overrides": [f"seed={n}"], "state": "pending", "error": None} for n in range(30)]
    (folders[0].parent / "sweep.json").write_text(json.dumps({"jobs": [*jobs, 3, {"name": 4, "error": 5}]}))
    assert main([str(tmp_path / "outputs")]) == 0
    told = capsys.readouterr().err
    assert "Without a result: temperature=9: failed: <b>NaN\n" in told
    assert "Without a result: seed=1: pending\n" in told
    assert "Without a result: and 12 more\n" in told
    page = (tmp_path / "outputs" / "report.html").read_text()
    assert "temperature=9: failed: &lt;b&gt;NaN" in page
    assert "temperature=9: failed: <b>" not in page
