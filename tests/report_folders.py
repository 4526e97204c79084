"""Run folders written by hand, and a reader for the pages made of them."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from kd.report import write_page

CODE = re.compile(r"<script>.*?</script>", re.DOTALL)  # plotly.js and the page's own script
NO_TEACHER = ("baseline", "student")
OBJECTIVE = "0.25 CE + 0.75 T^2 KL, T = 4"


def arm_block(name: str, classes: int, right: int, *, empty: int | None = None, val: bool = True) -> dict[str, Any]:
    """An arm that is right for `right` of 10 images of each class and takes the others for the next class."""
    confusion = [[0] * classes for _ in range(classes)]
    for i in range(classes):
        if i != empty:
            confusion[i][i], confusion[i][(i + 1) % classes] = right, 10 - right
    n = sum(map(sum, confusion))
    hits = sum(confusion[i][i] for i in range(classes))
    return {
        "model": f"MLP(hidden=[{right}00, {right}00])",
        "params": 1000 * right + 7,
        "macs": 1_234_567,
        "store_key": f"key-of-{name}",
        "epochs": 4,
        "selected_epoch": 3,
        "train_s": 12.34 + right,
        "images_per_s": 4321.0 + right,
        "val": {"accuracy": 0.7 + right / 100, "nll": 0.3} if val else None,
        "test": {
            "accuracy": hits / n,
            "errors": n - hits,
            "n": n,
            "nll": 0.1234567 + right,
            "ece": 0.0312345 + right / 100,
            "per_class_accuracy": [None if i == empty else right / 10 for i in range(classes)],
            "confusion": confusion,
            "agreement_with_teacher": None if name == "teacher" else 0.9 + right / 1000,
            "kl_to_teacher": None if name == "teacher" else 0.2 + right / 1000,
        },
        "omitted": None,
    }


def result(
    classes: list[str], *, seed: int = 0, arms: tuple[str, ...] = ("teacher", *NO_TEACHER), **of_arms: Any
) -> dict[str, Any]:
    rights = {"teacher": 9, "baseline": 7, "student": 8}
    return {
        "schema": 1,
        "experiment": "fake_kd",
        "seed": seed,
        "status": "done",
        "config_hash": "0123abcd",
        "git": None,
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "device": "cpu (2 threads)",
        "wall_s": 99.5,
        "data": {"name": "fake", "train": 1200, "val": 200, "test": 10 * len(classes), "classes": classes}
        | {"omitted": [], "omitted_from": []},
        "method": {"name": "kd", "temperature": 4.0, "alpha": 0.75, "beta": None, "objective": OBJECTIVE},
        "arms": {name: arm_block(name, len(classes), rights[name], **of_arms) for name in arms},
        "claim": None,
    }


def fake_run(
    folder: Path, content: dict[str, Any], *, scalars: tuple[str, ...] = ("val/accuracy", "train/loss")
) -> Path:
    """Write a run folder with this result and four epochs of curves."""
    folder.mkdir(parents=True)
    seed = content["seed"]
    for name in NO_TEACHER:  # the teacher is the same for all seeds
        content["arms"].get(name, {})["store_key"] = f"key-of-{name}-{seed}"
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "config.yaml").write_text(
        f"experiment: {content['experiment']}\nseed: {seed}\ndata:\n  root: /somewhere/{seed}\n  val: 200\n"
        f"teacher:\n  kind: trained\n  seed: 1000\nstore:\n  root: here-{seed}\nmethod:\n"
        f"  temperature: {content['method']['temperature']}\n  alpha: {content['method']['alpha']}\n",
        encoding="utf-8",
    )
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("arm", "epoch", "step", "name", "value"))
        for name in content["arms"]:
            writer.writerows((name, e, 10 * e, s, 0.5 + 0.1 * e) for e in range(4) for s in scalars)
            writer.writerow((name, "", "", "test/accuracy", 0.5))
    return folder


def digits(**options: Any) -> dict[str, Any]:
    return result([str(i) for i in range(10)], **options)


class Page(HTMLParser):
    """The tables of a page: row title -> cells, each its text and the number that it carries."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[tuple[str, float | None]]] = []
        self.text, self.value, self.in_cell = "", None, False
        self.whole = path.read_text(encoding="utf-8")
        self.source = CODE.sub("", self.whole)
        self.all_text: list[str] = []
        self.feed(self.source)

    def row(self, title: str) -> list[tuple[str, float | None]]:
        return next(row[1:] for row in self.rows if row[0][0] == title)

    def numbers(self, title: str) -> list[float | None]:
        return [value for _, value in self.row(title)]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.all_text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.text, self.value, self.in_cell = "", None, True
        elif tag == "data":
            self.value = float(dict(attrs)["value"] or "nan")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.rows[-1].append((self.text, self.value))
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.all_text.append(data)
        if self.in_cell:
            self.text += data


def page_of(folder: Path) -> Page:
    write_page([folder], folder / "report.html")
    return Page(folder / "report.html")


def sweep(folder: Path, cells: dict[tuple[float, float, int], float]) -> list[Path]:
    """A run for each (T, alpha, seed), whose student has this validation accuracy, and 5 points less in the test."""
    folders = []
    for (temperature, alpha, seed), accuracy in cells.items():
        content = digits(seed=seed)
        content["method"] |= {"temperature": temperature, "alpha": alpha}
        content["arms"]["student"]["val"]["accuracy"] = accuracy
        content["arms"]["student"]["test"]["accuracy"] = accuracy - 0.05
        folders.append(fake_run(folder / f"T={temperature:g},alpha={alpha:g},seed={seed}", content))
    return folders


def plots(page: Page) -> dict[str, dict[str, Any]]:
    """The interactive figures by name; of figures of one name the first."""
    found = re.findall(r'data-name="(\w+)">.*?<script type="application/json">([^<]*)</script>', page.source, re.DOTALL)
    return {name: json.loads(content) for name, content in reversed(found)}
