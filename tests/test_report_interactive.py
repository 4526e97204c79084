"""The interactive figures: plotly accepts them, and nothing that a run is called can break out of them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest

from kd.report import interactive, write_page
from kd.report.interactive import COLOURS, drawn_over, matrix, plain, script_policy
from kd.report.markup import Html
from kd.report.pictures import Line, bar_chart, line_chart
from tests.report_folders import Page, digits, fake_run, plots, result, sweep

ATTACK = "</script><script>alert(1)</script><b>&amp;"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    folder = tmp_path_factory.mktemp("pages")
    cells = {(t, a, seed): 0.6 + t / 100 + a / 10 for t in (1.0, 4.0) for a in (0.1, 0.9) for seed in (0, 1)}
    hostile = result([ATTACK, "b", "c"])
    hostile["experiment"] = ATTACK
    folders = {
        "one": [fake_run(folder / "run", digits())],
        "sweep": sweep(folder / "runs", cells),
        "hostile": [fake_run(folder / "hostile", hostile), fake_run(folder / "b", digits(seed=1))],
    }
    for name, runs in folders.items():
        write_page(runs, folder / name / "report.html")
    return {name: Page(folder / name / "report.html") for name in folders}


@pytest.mark.parametrize("name", ["one", "sweep", "hostile"])
def test_plotly_knows_every_property_of_every_figure(pages: dict[str, Page], name: str) -> None:
    found = plots(pages[name])
    assert len(found) >= 6
    for one, twin in found.items():
        figure = go.Figure(twin)  # raises ValueError for a property or a value that plotly does not have
        assert len(figure.data) == len(twin["data"]) > 0, one


def test_every_picture_with_a_twin_keeps_its_svg_in_front(pages: dict[str, Page]) -> None:
    boxes = re.findall(r'<div class="plotted" data-name="\w+">(<svg class="picture")?', pages["sweep"].source)
    assert len(boxes) > 6 and all(boxes)


def test_colours_are_those_of_the_arms() -> None:
    lines = [Line(arm, [(1, 0.5), (2, 0.6)], None) for arm in ("teacher", "baseline", "student", "peer")]
    twin = line_chart("x", "x", lines, percent=True).plot
    assert twin is not None
    drawn = [trace["line"]["color"] for trace in twin["data"]]
    assert drawn == [COLOURS[name] for name in ("teacher", "baseline", "student", "other")]
    bars = bar_chart("x", "x", ["a"], {"student": [0.5]}).plot
    assert bars is not None and bars["data"][0]["marker"]["color"] == COLOURS["student"]


@pytest.mark.parametrize(("epochs", "step"), [(3, 1), (60, None)])
def test_no_tick_stands_between_two_epochs(epochs: int, step: int | None) -> None:
    twin = line_chart("x", "x", [Line("student", [(i, 0.5) for i in range(1, epochs + 1)], None)], percent=True).plot
    assert twin is not None and twin["layout"]["xaxis"].get("dtick") == step


def test_two_classes_of_one_name_stay_two() -> None:
    twin = matrix([[3, 1], [0, 4]], ["same", "same"], height=100)
    assert twin["layout"]["xaxis"]["tickvals"] == [0, 1]
    assert twin["layout"]["xaxis"]["ticktext"] == ["same", "same"]
    assert twin["data"][0]["z"] == [[0.75**0.5, -(0.25**0.5)], [0, 1]]
    assert twin["data"][1]["text"] == ["3", "1", "4"]


def test_no_name_ends_the_script_that_holds_it(pages: dict[str, Page]) -> None:
    box = drawn_over(Html("<svg></svg>"), "x", {"data": [{"name": ATTACK}], "layout": {}})
    assert box.count("</script>") == 1
    held = re.search(r'json">(.*)</script>', box)
    assert held and json.loads(held[1])["data"][0]["name"] == ATTACK
    assert "<script>alert" not in pages["hostile"].whole
    found = plots(pages["hostile"])
    assert plain(ATTACK) == "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;b&gt;&amp;amp;"
    shown = found["per_class"]["layout"]["yaxis"]["ticktext"]
    assert shown[0] == "&lt;/script&gt;&lt;scrip…"  # cut, and read by plotly as the text that it is
    assert ATTACK not in json.dumps(found)


def test_a_number_that_json_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        drawn_over(Html(""), "x", {"data": [{"y": [float("nan")]}], "layout": {}})


def test_policy_lets_two_scripts_run_and_fetches_nothing(pages: dict[str, Page]) -> None:
    policies = {name: re.findall(r'Security-Policy" content="([^"]*)"', page.whole)[0] for name, page in pages.items()}
    for policy in policies.values():
        assert policy.startswith("default-src 'none'") and "http" not in policy and "*" not in policy
        assert policy.count("sha256-") == 2
    assert "unsafe-eval" in policies["sweep"]  # for the parallel coordinates
    assert "unsafe-eval" not in policies["one"]
    assert "unsafe-inline" not in script_policy("")


def test_plotly_is_in_the_page_once(pages: dict[str, Page]) -> None:
    for page in pages.values():
        assert page.whole.count(interactive._plotly()) == 1
        assert len(page.whole) - len(page.source) < 5_500_000


def test_pages_are_written_without_importing_plotly_graph_objects(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", digits())
    code = (
        "import sys; from kd.report.__main__ import main; main(sys.argv[1:]);"
        "sys.exit(any(name.startswith('plotly.graph_obj') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, timeout=60)
