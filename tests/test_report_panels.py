"""The panels of one run's page: omitted classes, calibration, test images, the claim's numbers, size and latency."""

import base64
import json
import math
import re
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kd.errors import StoreError
from kd.report.__main__ import main
from kd.report.examples import Example
from kd.report.read import read_run
from kd.report.story import story
from kd.table import show
from tests.report_folders import NO_TEACHER, digits, fake_run, page_of, result

ATTACK = "<script>alert(1)</script>"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
SVG = "{http://www.w3.org/2000/svg}"
LATENCY = {"1": 0.251, "256": 12.5, "device": "cpu", "threads": 1, "repeats": 40}


def matrix(classes: int, hits: int, hits_of: dict[int, int]) -> list[list[int]]:
    """Ten images of each class, of which so many are right; the others are taken for the next class."""
    right = [hits_of.get(i, hits) for i in range(classes)]
    return [
        [right[i] if j == i else (10 - right[i]) * (j == (i + 1) % classes) for j in range(classes)]
        for i in range(classes)
    ]


def rule(classes: int, omitted: list[int], right: int, bias: dict[int, float]) -> dict[str, Any]:
    """One rule after which so many of ten are right in each omitted class, and 8 in the others."""
    confusion = matrix(classes, 8, dict.fromkeys(omitted, right))
    hits = sum(confusion[i][i] for i in range(classes))
    n = len(omitted) * 10
    return {
        "bias": {str(number): value for number, value in bias.items()},
        "accuracy": hits / (10 * classes),
        "errors": 10 * classes - hits,
        "omitted_accuracy": right * len(omitted) / n,
        "omitted_errors": n - right * len(omitted),
        "omitted_n": n,
        "per_class_accuracy": [confusion[i][i] / 10 for i in range(classes)],
        "confusion": confusion,
    }


def correction(classes: int, omitted: list[int], **rules: dict[str, Any]) -> dict[str, Any]:
    """The block of an arm that gets 2 of the 10 images of each omitted class right before any correction."""
    n = 10 * len(omitted)
    curve = [{"bias": float(b), "omitted_accuracy": (b + 2) / 10, "accuracy": 0.8 - b / 100} for b in range(-2, 9)]
    return {
        "before": {"omitted_accuracy": 0.2, "omitted_errors": n - n // 5, "omitted_n": n},
        "rules": rules,
        "missing": {} if "prior" in rules else {"prior": "there are no held-out images"},
        "curve": curve,
    }


def without(content: dict[str, Any], omitted: list[int], arms: tuple[str, ...] = NO_TEACHER) -> dict[str, Any]:
    """The result of a run whose arms never saw some classes, corrected by three rules."""
    classes = len(content["data"]["classes"])
    content["data"] |= {"omitted": omitted, "omitted_from": list(arms)}
    own = {number: 3.0 + i for i, number in enumerate(omitted)}
    for name in arms:
        rules = {
            "fixed": rule(classes, omitted, 9, dict.fromkeys(omitted, 3.5)),
            "prior": rule(classes, omitted, 8, own),
            "oracle": rule(classes, omitted, 10, dict.fromkeys(omitted, 4.25)),
        }
        content["arms"][name]["correction"] = correction(classes, omitted, **rules)
        content["arms"][name]["test"]["confusion"] = matrix(classes, 8, dict.fromkeys(omitted, 2))
    return content


def measured(content: dict[str, Any]) -> dict[str, Any]:
    """A result with reliability, agreement on the teacher's mistakes, size and latency."""
    for number, (name, arm) in enumerate(content["arms"].items()):
        full = [{"n": 5, "accuracy": 0.4, "confidence": 0.5}, {"n": 95, "accuracy": 0.9, "confidence": 0.98}]
        empty = {"n": 0, "accuracy": None, "confidence": None}
        arm["test"]["reliability"] = [*[empty] * 7, full[0], *[empty] * 6, full[1]]
        arm["test"] |= {"teacher_mistakes": 10, "agreement_on_teacher_mistakes": None if name == "teacher" else 0.3}
        arm |= {"size_bytes": 5_107_240 + number, "latency_ms": LATENCY}
    return content


def with_examples(folder: Path, classes: int, arms: tuple[str, ...] = ("teacher", *NO_TEACHER)) -> Path:
    """Write examples.json: one image of each kind, of class 3, which the student gets right and the baseline not."""
    logits = {
        "teacher": [4.0 if i == 3 else 2.0 if i == 5 else -float(i) for i in range(classes)],
        "baseline": [3.0 if i == 5 else 0.0 for i in range(classes)],
        "student": [2.0 if i == 3 else 0.0 for i in range(classes)],
    }
    images = [
        {"index": 40 + i, "target": 3, "kind": kind, "png": PNG, "logits": {arm: logits[arm] for arm in arms}}
        for i, kind in enumerate(("dark", "changed"))
    ]
    (folder / "examples.json").write_text(json.dumps({"schema": 1, "images": images}), encoding="utf-8")
    return folder


def figure(folder: Path, name: str) -> ElementTree.Element:
    return ElementTree.parse(folder / "figures" / f"{name}.svg").getroot()


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_the_story_of_the_digit_3_stands_on_top(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", without(digits(), [3]))
    page = page_of(folder)
    told = (
        "The student never saw class 3 and gets 20.0% of its 10 test images right, "
        "90.0% after the bias of that class is raised by 3.5 (all test images: 80.0% before, 81.0% after). "
        "The baseline never saw it either: 20.0%, 90.0% after its correction (all: 81.0%). The teacher saw it: 90.0%."
    )
    assert told in page.words
    assert page.words.index(told) < page.words.index("Result")
    assert "never seen: 20.0% → 90.0% right all: 80.0% → 81.0%" in page.words
    assert "validated without these: their validation accuracy is not comparable" in page.words


def test_a_class_that_one_of_both_saw_is_a_cause_too(tmp_path: Path) -> None:
    for arms, said in ((NO_TEACHER, "Distillation changed"), (("student",), "that only one of both saw, changed")):
        assert said in page_of(fake_run(tmp_path / "-".join(arms), without(digits(), [3], arms))).words


def test_an_arm_without_a_curve_is_named(tmp_path: Path) -> None:
    content = digits()
    folder = fake_run(tmp_path / "run", content)
    content["arms"]["peer"] = content["arms"]["student"]
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    assert "No curve of peer: not trained here, or not by itself." in page_of(folder).words
    assert "No curve of" not in page_of(fake_run(tmp_path / "all", digits())).words


def test_rules_stand_side_by_side_with_the_published_numbers(tmp_path: Path) -> None:
    content = without(digits(), [3])
    published = {
        "omitted_accuracy": 0.868,
        "omitted_errors": 133,
        "corrected_omitted_errors": 14,
        "corrected_errors": 109,
    }
    content["claim"] = {"source": "s", "statement": "t", "published": {"student": published}, "measured": {}}
    page = page_of(fake_run(tmp_path / "run", content))
    head = next(row for row in page.rows if [text for text, _ in row][1:3] == ["before", "fixed"])
    assert [text for text, _ in head[1:]] == ["before", "fixed", "prior", "oracle (tuned on the test set)"]
    at = page.rows.index(head)  # the student's table comes first
    shown = [(row[0][0], [text for text, _ in row[1:]]) for row in page.rows[at + 1 : at + 9]]
    assert shown == [
        ("bias", ["-", "+3.5", "+3", "+4.25"]),
        ("right on class 3", ["20.00%", "90.00%", "80.00%", "100.00%"]),
        ("as published", ["86.80%", "-", "-", "-"]),
        ("errors there, of 10", ["8", "1", "2", "0"]),
        ("as published", ["133", "14", "-", "-"]),
        ("right on all classes", ["80.00%", "81.00%", "80.00%", "82.00%"]),
        ("errors, of 100", ["20", "19", "20", "18"]),
        ("as published", ["-", "109", "-", "-"]),
    ]


def test_the_curve_marks_the_rules(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", without(digits(), [3]))
    page_of(folder)
    root = figure(folder, "omitted_student")
    assert {"before", "prior +3", "fixed +3.5", "oracle +4.25", "class 3", "all test images"} <= set(texts(root))
    lines = [line for line in root.iter(f"{SVG}line") if line.attrib.get("class") == "mark"]
    places = [float(line.attrib["x1"]) for line in lines]
    assert places == sorted(places) and len(places) == 4
    assert (places[3] - places[0]) / (places[2] - places[0]) == pytest.approx(4.25 / 3.5)
    rings = [ring for ring in root.iter(f"{SVG}circle") if "kept" in ring.attrib["class"]]
    assert len(rings) == 8
    assert "bias +3\nclass 3  50.00%\nall test images  77.00%" in [e.text for e in root.iter(f"{SVG}title")]


def test_confusions_before_and_after(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", without(digits(), [3]))
    page = page_of(folder)
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert {
        "confusion_student",
        "confusion_student_fixed",
        "confusion_student_prior",
        "confusion_student_oracle",
    } <= names
    assert page.words.index("After: fixed") < page.words.index("Confusions under the other rules")
    titles = [e.text for e in figure(folder, "confusion_student_fixed").iter(f"{SVG}title")]
    assert "true 3, predicted 3\n9 of 10 (90.00%)" in titles
    before = [e.text for e in figure(folder, "confusion_student").iter(f"{SVG}title")]
    assert "true 3, predicted 3\n2 of 10 (20.00%)" in before


def test_prior_is_told_where_no_bias_was_given(tmp_path: Path) -> None:
    content = without(digits(), [3])
    block = content["arms"]["student"]["correction"]
    del block["rules"]["fixed"]
    block["missing"] = {"fixed": "no value was given"}
    page = page_of(fake_run(tmp_path / "run", content))
    assert "80.0% after the bias of that class is raised by 3" in page.words
    assert "No fixed: no value was given" in page.words
    assert "After: prior" in page.words


def test_an_oracle_alone_is_never_told_as_the_result(tmp_path: Path) -> None:
    content = without(digits(), [3])
    block = content["arms"]["student"]["correction"]
    block["rules"] = {"oracle": block["rules"]["oracle"]}
    said = story(read_run(fake_run(tmp_path / "run", content)))
    assert said is not None and said.startswith(
        "The student never saw class 3 and gets 20.0% of its 10 test images right. "
    )


def test_several_omitted_classes(tmp_path: Path) -> None:
    few = story(read_run(fake_run(tmp_path / "few", without(digits(), [3, 5]))))
    assert few is not None and few.startswith(
        "The student never saw classes 3 and 5 and gets 20.0% of their 20 test images"
    )
    assert "after the biases of these classes are raised by 3.5" in few
    many = without(digits(), [0, 1, 2, 3, 4, 5])
    for block in (many["arms"][arm]["correction"] for arm in NO_TEACHER):
        del block["rules"]["fixed"]
    folder = fake_run(tmp_path / "many", many)
    page = page_of(folder)
    assert "never saw 6 of the 10 classes and gets" in page.words
    assert "after the biases of these classes are corrected (rule: prior)" in page.words
    assert page.row("bias")[1][0] == "+3 to +8"
    assert "prior +5.5" in texts(figure(folder, "omitted_student"))


def test_classes_hidden_from_the_teacher_only(tmp_path: Path) -> None:
    said = story(read_run(fake_run(tmp_path / "run", without(digits(), [3], ("teacher",)))))
    assert said is not None and said.startswith("The teacher never saw class 3 and gets 20.0%")
    assert said.endswith("The baseline saw it: 70.0%. The student saw it: 80.0%.")


def test_reliability_diagrams(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", measured(digits()))
    page = page_of(folder)
    assert "Calibration teacher ECE 0.1212" in page.words
    for arm in ("teacher", *NO_TEACHER):
        root = figure(folder, f"reliability_{arm}")
        bars = [e for e in root.iter(f"{SVG}rect") if e.attrib.get("class") == f"bar {arm}"]
        heights = [float(bar.attrib["height"]) for bar in bars]
        assert heights[1] / heights[0] == pytest.approx(0.9 / 0.4)
        shares = [float(e.attrib["height"]) for e in root.iter(f"{SVG}rect") if e.attrib.get("class") == "share"]
        assert shares[1] / shares[0] == pytest.approx(95 / 5)
        (said, *_) = [e.text for e in root.iter(f"{SVG}title")]
        assert said == "confidence 47% to 53%\n5 images (5.00%)\nmean confidence 50.00%\naccuracy 40.00%"


def test_results_table_has_size_latency_and_the_teachers_mistakes(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path / "run", measured(digits())))
    assert page.row("size on disk")[0] == ("5.1 MB", 5_107_240)
    assert page.row("latency, 1 image") == [("0.251 ms", 0.251)] * 3
    assert page.row("latency, 256 images") == [("12.5 ms", 12.5)] * 3
    assert page.row("agreement on its mistakes") == [("-", None), ("30.00%", 0.3), ("30.00%", 0.3)]
    assert "median of 40 repeats on cpu, 1 thread" in page.words
    assert "the 10 images that the teacher gets wrong" in page.words


def test_an_older_result_has_none_of_the_panels(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path / "run", digits()))
    for title in ("size on disk", "latency, 1 image", "agreement on its mistakes"):
        assert title not in [row[0][0] for row in page.rows]
    for title in ("Calibration", "Dark knowledge", "Most changed", "Omitted classes", "Latency"):
        assert title not in page.words


def test_dark_knowledge_at_every_temperature(tmp_path: Path) -> None:
    folder = with_examples(fake_run(tmp_path / "run", digits()), 10)
    page = page_of(folder)
    buttons = re.findall(r'<input type="radio"[^>]*class="t(\d)"([^>]*)>', page.source)
    assert [(number, "checked" in rest) for number, rest in buttons] == [
        ("0", False), ("1", False), ("2", True), ("3", False), ("4", False)
    ]  # fmt: skip
    assert re.findall(r"<label[^>]*>(T = \d+)</label>", page.source) == [f"T = {t}" for t in (1, 2, 4, 8, 20)]
    assert page.source.count(f"data:image/png;base64,{PNG}") == 2
    root = figure(folder, "dark_knowledge")
    assert texts(root)[:2] == ["true class: 3", "test image 40"]
    classes = [e for e in root.iter(f"{SVG}text") if "end" in e.attrib.get("class", "")]
    assert [e.text for e in classes] == ["3", "5", "0", "1", "2"]
    assert [e.attrib["class"] for e in classes] == ["end true", *["end"] * 4]
    powers = [math.exp(v / 4) for v in (4.0, 2.0, 0.0, -1.0, -2.0, -4.0, -6.0, -7.0, -8.0, -9.0)]
    assert f"3, T = 4\nteacher  {powers[0] / sum(powers):.3%}" in [e.text for e in root.iter(f"{SVG}title")]


def test_a_temperature_of_its_own_has_its_button(tmp_path: Path) -> None:
    content = digits()
    content["method"]["temperature"] = 2.5
    page = page_of(with_examples(fake_run(tmp_path / "run", content), 10))
    assert re.search(r'class="t2" checked="checked"><label[^>]*>T = 2.5<', page.source)
    content["method"]["temperature"] = None
    page = page_of(with_examples(fake_run(tmp_path / "none", content), 10))
    assert re.search(r'class="t2" checked="checked"><label[^>]*>T = 4<', page.source)


def test_images_that_distillation_changed(tmp_path: Path) -> None:
    folder = with_examples(fake_run(tmp_path / "run", digits()), 10)
    page = page_of(folder)
    before, after = 1 / (9 + math.exp(3)), math.exp(2) / (9 + math.exp(2))
    assert f"test image 41, {100 * (after - before):+.1f} points" in page.words
    root = figure(folder, "most_changed")
    said = [(e.text, e.attrib["class"]) for e in root.iter(f"{SVG}text") if (e.text or "").startswith("→")]
    assert said == [("→ 3", "right"), ("→ 5", "wrong"), ("→ 3", "right")]
    assert f"baseline: {before:.3%} for 3; takes it for 5" in [e.text for e in root.iter(f"{SVG}title")]


def test_runs_beside_each_other_have_buttons_of_their_own(tmp_path: Path) -> None:
    folders = [str(with_examples(fake_run(tmp_path / name, digits()), 10)) for name in ("a", "b")]
    assert main([*folders, "--out", str(tmp_path / "both.html")]) == 0
    source = (tmp_path / "both.html").read_text(encoding="utf-8")
    ids = re.findall(r'id="(t-[^"]+)"', source)
    assert len(ids) == len(set(ids)) == 10


def test_a_run_without_a_teacher_has_its_images_too(tmp_path: Path) -> None:
    content = measured(without(digits(arms=NO_TEACHER), [3]))
    page = page_of(with_examples(fake_run(tmp_path / "run", content), 10, NO_TEACHER))
    for title in ("Dark knowledge", "Most changed by distillation", "Calibration", "Omitted classes"):
        assert title in page.words
    assert "The teacher" not in page.words


def test_a_hundred_classes(tmp_path: Path) -> None:
    content = measured(without(result([f"kind {i}" for i in range(100)]), [3]))
    folder = with_examples(fake_run(tmp_path / "run", content), 100)
    page = page_of(folder)
    assert not list((folder / "figures").glob("confusion_*"))
    assert page.row("kind 3 → kind 4")[0] == ("8", None)  # the student's before its correction, first of all lists
    assert "The student never saw class kind 3 and gets" in page.words
    assert (
        len([e for e in figure(folder, "dark_knowledge").iter(f"{SVG}text") if "end" in e.attrib.get("class", "")]) == 5
    )


def test_class_names_are_escaped_in_every_panel(tmp_path: Path) -> None:
    names = [ATTACK if i == 3 else '"><img src=x onerror=alert(1)>' if i == 5 else f"c{i}" for i in range(10)]
    content = measured(without(result(names), [3]))
    content["arms"]["student"]["correction"]["missing"] = {ATTACK: ATTACK}
    content["claim"] = {"source": "s", "statement": "t", "method": ATTACK, "published": {"student": {"errors": 1}}}
    content["claim"]["comparisons"] = {"a": {"statement": ATTACK, "metric": ATTACK, "arm": ATTACK, "minus": "baseline"}}
    folder = with_examples(fake_run(tmp_path / "run", content), 10)
    page = page_of(folder)
    assert ATTACK not in page.source and "<img src=x" not in page.source
    assert page.words.count("alert(1)") > 10
    for path in (folder / "figures").iterdir():
        tags = {element.tag.removeprefix(SVG) for element in ElementTree.parse(path).iter()}
        assert not tags & {"script", "img"}, path


def test_numbers_of_another_method_say_so(tmp_path: Path) -> None:
    content = digits()
    claim = {"source": "s", "statement": "t", "method": "rkd", "measured": {}, "comparisons": {}}
    content["claim"] = claim | {"published": {"student": {"errors": 74}, "teacher": {"errors": 67}}}
    page = page_of(fake_run(tmp_path / "run", content))
    assert "The student's published numbers are for method rkd; this run's method is kd." in page.words
    assert page.row("published (student: rkd)")[2][0] == "74 errors"
    content["claim"] = claim | {"published": {"teacher": {"errors": 67}}}
    page = page_of(fake_run(tmp_path / "gone", content))
    assert "this run's method is kd, so none stands here." in page.words
    assert page.row("published")[0][0] == "67 errors"
    content["claim"] = claim | {"method": None, "published": {}}
    page = page_of(fake_run(tmp_path / "any", content))
    assert "published numbers are for" not in page.words
    assert "No number was published for these settings." in page.words


def test_the_claims_metrics_are_named_and_its_hypotheses_measured(tmp_path: Path) -> None:
    content = without(digits(), [3])
    pair = {"arm": "student", "minus": "baseline", "versus": []}
    content["claim"] = {
        "source": "s",
        "statement": "t",
        "method": "kd",
        "published": {"student": {"corrected_omitted_accuracy": 0.986, "omitted_errors": 133, "errors": 206}},
        "measured": {"student": {"corrected_omitted_accuracy": 0.9, "omitted_errors": 8, "errors": 20}},
        "comparisons": {
            "helps": {"statement": "it helps", "metric": "accuracy", **pair},
            "elsewhere": {"statement": "T matters", "metric": "accuracy", **pair, "versus": ["method.temperature=1"]},
        },
    }
    page = page_of(fake_run(tmp_path / "run", content))
    row = page.row("student, accuracy on the omitted classes, bias corrected")
    assert [text for text, _ in row] == ["98.60%", "90.00%", "-8.60"]
    assert page.numbers("student, errors on the omitted classes") == [133, 8, -125]
    assert [text for text, _ in page.row("published")] == ["-", "-", "206 errors"]
    assert "it helps accuracy: student 80.00% , baseline 70.00% , +10.00" in page.words
    assert "T matters" not in page.words


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("half", "damaged"),
        ("list", "holds no object"),
        ("schema", "its schema is 7, this version reads 1"),
        ("images", "images is missing"),
        ("target", "image 40: target is 10, of 10 classes"),
        ("kind", "image 40: kind is 'bright'"),
        ("base64", "image 40: png is no base64"),
        ("jpeg", "image 40: png is no PNG file"),
        ("classes", "the logits of 'student' are not 10 finite numbers"),
        ("nan", "the logits of 'student' are not 10 finite numbers"),
        ("empty", "image 40: there are no logits"),
        ("number", "one of its images is 5"),
    ],
)
def test_damaged_examples_are_named(tmp_path: Path, damage: str, said: str) -> None:
    path = with_examples(fake_run(tmp_path / "run", digits()), 10) / "examples.json"
    content = json.loads(path.read_text())
    first = content["images"][0]
    if damage == "schema":
        content["schema"] = 7
    elif damage == "images":
        del content["images"]
    elif damage == "number":
        content["images"] = [5]
    elif damage in ("target", "kind"):
        first |= {"target": 10} if damage == "target" else {"kind": "bright"}
    elif damage in ("base64", "jpeg"):
        first["png"] = '"><script>' if damage == "base64" else base64.b64encode(b"\xff\xd8\xff\xe0").decode()
    elif damage in ("classes", "nan"):
        first["logits"]["student"] = [0.0] * 9 if damage == "classes" else [math.nan] * 10
    elif damage == "empty":
        first["logits"] = {}
    text = "[]" if damage == "list" else json.dumps(content)
    path.write_text(text[:50] if damage == "half" else text)
    with pytest.raises(StoreError, match=re.escape(said)) as caught:
        read_run(path.parent)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", ["rules", "bias", "square", "class", "none", "bin", "latency", "curve"])
def test_damaged_additions_to_the_result_are_named(tmp_path: Path, damage: str) -> None:
    content = measured(without(digits(), [3]))
    arm = content["arms"]["student"]
    block = arm["correction"]
    if damage == "rules":
        del block["rules"]
    elif damage == "bias":
        block["rules"]["fixed"]["bias"] = {}
    elif damage == "square":
        block["rules"]["fixed"]["confusion"].pop()
    elif damage in ("class", "none"):
        content["data"]["omitted"] = [10] if damage == "class" else []
    elif damage == "bin":
        arm["test"]["reliability"][0] = {"n": 3, "accuracy": None, "confidence": None}
    elif damage == "latency":
        arm["latency_ms"] = LATENCY | {"256": "fast"}
    elif damage == "curve":
        block["curve"][0] = {"bias": None}
    with pytest.raises(StoreError, match=r"result\.json is damaged"):
        read_run(fake_run(tmp_path / "run", content))


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20),
    st.sampled_from([1.0, 2.5, 20.0]),
)
def test_soft_targets_are_probabilities_in_the_order_of_the_logits(logits: list[float], temperature: float) -> None:
    example = Example(0, 0, "dark", PNG, {"teacher": logits})
    found = example.probabilities("teacher", temperature)
    assert sum(found) == pytest.approx(1)
    assert all(0 <= value <= 1 for value in found)
    order = sorted(range(len(logits)), key=logits.__getitem__)
    assert all(found[one] <= found[two] + 1e-15 for one, two in pairwise(order))
    assert logits[example.predicted("teacher")] == max(logits)


def printed(content: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=80)
    show(content, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_terminals_table_tells_of_omitted_classes_size_and_latency() -> None:
    content = measured(without(digits(), [3]))
    content["claim"] = {
        "source": "s",
        "statement": "t",
        "published": {"student": {"errors": 206, "omitted_errors": 133}},
    }
    text = printed(content)
    table = [line for line in text.splitlines() if line.startswith(("│", "┃", "┏", "└"))]
    assert max(map(len, table)) <= 80
    rows = {
        cells[0].strip(): [cell.strip() for cell in cells[1:]]
        for line in table
        if len(cells := line[1:-1].split("│")) == 4
    }
    assert rows["size on disk"] == ["5.1 MB"] * 3
    assert rows["ms for 1 / 256"] == ["0.251 / 12.5"] * 3
    assert rows["on omitted classes"] == ["-", "20.00%", "20.00%"]
    assert rows["with fixed bias"] == ["-", "90.00%", "90.00%"]
    assert rows["with prior bias"] == ["-", "80.00%", "80.00%"]
    assert rows["published"] == ["-", "-", "206 errors"]
    assert "oracle" not in text
    assert "ms: one batch of 1 and of 256 images, median, cpu, 1 thread" in text
    content["arms"]["teacher"]["latency_ms"] = LATENCY | {"device": "cuda", "threads": 2}
    assert "median, cuda, 2 threads; cpu, 1" in " ".join(printed(content).split())


def test_the_terminals_table_of_an_older_result() -> None:
    text = printed(digits())
    assert "Distillation changed test accuracy by +10.00 points" in text
    assert "Training changed" in printed(digits() | {"method": {"name": "hard"}})
    assert "size on disk" not in text and "ms" not in text and "omitted" not in text
    assert "test accuracy" in text
