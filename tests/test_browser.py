"""The pages in a real browser, without a network: what it shows, what it complains of, whether it fits a phone."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from kd.report import write_page
from tests.report_folders import CODE, Page, digits, fake_run, result, sweep

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: nothing is fetched: the proxy's port is closed, and the browser is told to leave its own services alone
OFFLINE = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--proxy-server=127.0.0.1:9",
    "--virtual-time-budget=30000",
)
ATTACK = "</script><script>document.body.dataset.failed='attacked'</script>"
#: put before everything else in a copy of a page, in a frame: says what went wrong, and what the page looks like
PROBE = """
const wrong = [];
const note = (kind, what) => wrong.push(`${kind}: ${what}`);
addEventListener("error", (event) => note("error", event.message));
addEventListener("unhandledrejection", (event) => note("rejection", event.reason));
addEventListener("securitypolicyviolation", (event) => note("policy", event.violatedDirective + event.blockedURI));
console.error = (...words) => note("console", words.join(" "));
setInterval(() => parent.postMessage(JSON.stringify({
  wrong,
  figures: document.body.dataset.figures ?? "",
  failed: document.body.dataset.failed ?? "",
  inner: innerWidth,
  scroll: document.documentElement.scrollWidth,
  wide: [...document.querySelectorAll(".plot")].filter((plot) => plot.scrollWidth > plot.clientWidth + 1).length,
  texts: [...document.querySelectorAll(".plot text")].map((text) => text.textContent),
}), "*"), 100);
"""
FRAME = """<!doctype html><body><script>
addEventListener("message", (event) => {{ document.body.dataset.seen = event.data; }});
</script><iframe src="{page}" style="width:{width}px;height:3000px;border:0"></iframe>"""


@dataclass(frozen=True)
class Seen:
    """What the probe last said of a page."""

    wrong: list[str]
    figures: str
    failed: str
    inner: int
    scroll: int
    wide: int
    texts: list[str]


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH")
    return found


def dumped(browser: str, page: Path, profile: Path) -> str:
    """The page's DOM after its scripts have run."""
    command = [browser, *OFFLINE, f"--user-data-dir={profile}", "--window-size=1280,3000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen(browser: str, page: Path, width: int, folder: Path) -> Seen:
    """Look at a copy of the page that carries the probe, in a frame of this width."""
    folder.mkdir()
    code = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    content = page.read_text(encoding="utf-8").replace("script-src ", f"script-src 'sha256-{code}' ", 1)
    content = content.replace("<title>", f"<script>{PROBE}</script><title>", 1)
    (folder / "page.html").write_text(content, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(page="page.html", width=width), encoding="utf-8")
    said = re.search(r'data-seen="([^"]*)"', dumped(browser, folder / "frame.html", folder / "profile"))
    assert said, "the page never answered"
    return Seen(**json.loads(html.unescape(said[1])))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of one run, whose first class is called something hostile."""
    folder = tmp_path_factory.mktemp("one")
    write_page([fake_run(folder / "run", result([ATTACK, "<b>bold</b>", "c"]))], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    cells = {(t, a, seed): 0.6 + t / 100 + a / 10 for t in (1.0, 4.0, 20.0) for a in (0.1, 0.9) for seed in (0, 1)}
    del cells[20.0, 0.9, 0], cells[20.0, 0.9, 1]
    write_page(sweep(folder / "runs", cells), folder / "report.html")
    return folder / "report.html"


def test_browser_shows_the_numbers_and_draws_every_figure(browser: str, tmp_path: Path) -> None:
    write_page([fake_run(tmp_path / "run", digits())], tmp_path / "report.html")
    dom = dumped(browser, tmp_path / "report.html", tmp_path / "profile")
    boxes = Page(tmp_path / "report.html").source.count('class="plotted"')
    assert boxes >= 6
    assert f'data-figures="{boxes} drawn"' in dom and "data-failed" not in dom
    assert dom.count('class="plotted drawn"') == boxes
    (tmp_path / "dom.html").write_text(dom, encoding="utf-8")
    assert Page(tmp_path / "dom.html").numbers("test accuracy") == [0.9, 0.7, 0.8]
    matrix = CODE.sub("", dom).partition('data-name="confusion_student"')[2].partition("js-plotly-plot")[2]
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", matrix.partition('class="plotted')[0])
    assert drawn.count("8") == drawn.count("2") == 12  # of 10 cells each, and of a class on both axes


@pytest.mark.parametrize("width", [390, 1280])
def test_page_of_one_run_fits_and_complains_of_nothing(browser: str, one: Path, tmp_path: Path, width: int) -> None:
    found = seen(browser, one, width, tmp_path / "look")
    assert (found.wrong, found.failed) == ([], "")
    assert found.inner == width and found.scroll <= width
    assert found.wide == 0
    assert "<b>bold</b>" in found.texts  # as it is called, not in bold


def test_comparison_fits_a_phone_and_its_map_says_the_means(browser: str, several: Path, tmp_path: Path) -> None:
    found = seen(browser, several, 390, tmp_path / "look")
    assert (found.wrong, found.failed) == ([], "")
    assert found.figures in ("6 drawn", "5 drawn")  # without WebGL the parallel coordinates stay a picture
    assert found.inner == 390 and found.scroll <= 390
    assert found.wide == 0
    cells = [text for text in found.texts if re.fullmatch(r"\d\d\.\d\d%n = 2", text)]
    assert cells == ["62.00%n = 2", "70.00%n = 2", "65.00%n = 2", "73.00%n = 2", "81.00%n = 2"]
    assert found.texts.count("no run") == 2  # one in each map
