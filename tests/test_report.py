"""The page of run folders: what it shows, what it refuses. The folders are written here, not trained."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kd.errors import ConfigError, StoreError
from kd.report import write_page
from kd.report.__main__ import main
from kd.report.comparison import run_names
from kd.report.configurations import pools, recipe_text
from kd.report.confusion import top_confusions
from kd.report.pictures import tick_texts, value_axis
from kd.report.read import find_runs, read_run
from tests.report_folders import NO_TEACHER, OBJECTIVE, Page, digits, fake_run, page_of, result

ATTACK = "<script>alert(1)</script>"
LOADS = re.compile(r"""(?:src|href|srcset|action|data|poster)\s*=\s*["']?\s*(?!#)\S|url\(|@import""", re.IGNORECASE)
NO_CODE = re.compile(r'<script type="application/json"[^<]*</script>')  # the numbers of the interactive figures


def test_page_shows_the_numbers_of_result_json(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path / "run", digits()))
    arms = json.loads((tmp_path / "run" / "result.json").read_text())["arms"].values()
    tests = [arm["test"] for arm in arms]
    for title, expected in {
        "parameters": [arm["params"] for arm in arms],
        "MACs per image": [arm["macs"] for arm in arms],
        "test accuracy": [test["accuracy"] for test in tests],
        "test errors": [test["errors"] for test in tests],
        "NLL": [test["nll"] for test in tests],
        "ECE": [test["ece"] for test in tests],
        "agreement with teacher": [test["agreement_with_teacher"] for test in tests],
        "KL to teacher": [test["kl_to_teacher"] for test in tests],
        "validation accuracy": [arm["val"]["accuracy"] for arm in arms],
        "training seconds": [arm["train_s"] for arm in arms],
        "images/s": [arm["images_per_s"] for arm in arms],
    }.items():
        assert page.numbers(title) == expected, title
    assert [text for text, _ in page.row("test accuracy")] == ["90.00%", "70.00%", "80.00%"]
    assert [text for text, _ in page.row("kept epoch")] == ["3 of 4"] * 3
    assert page.numbers("0")[:3] == [0.9, 0.7, 0.8]
    assert "Distillation changed test accuracy by +10.00 points" in page.words
    assert "one seed is no verdict" in page.words
    for phrase in ("seed 0", "T = 4", "alpha = 0.75", OBJECTIVE, "0123abcd", "2.15.0", "temperature: 4.0"):
        assert phrase in page.words


def test_page_is_self_contained_and_the_same_each_time(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", digits())
    first = page_of(folder).source
    assert "http" not in re.sub(r"http-equiv", "", first)
    assert not LOADS.search(first)
    assert "default-src 'none'" in first and "script-src 'sha256-" in first
    assert page_of(folder).source == first
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml",
        "figures",
        "metrics.csv",
        "report.html",
        "result.json",
    ]


def test_figures_are_well_formed_and_the_page_has_the_same(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path / "run", digits()))
    figures = sorted((tmp_path / "run" / "figures").iterdir())
    names = [
        "confusion_baseline",
        "confusion_student",
        "confusion_teacher",
        "curves_accuracy",
        "curves_loss",
        "per_class",
    ]
    assert [path.name for path in figures] == [f"{name}.svg" for name in names]
    for path in figures:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        drawing = path.read_text(encoding="utf-8").partition('class="sheet"></rect>')[2].removesuffix("</svg>\n")
        assert drawing and drawing in page.source


def test_figures_mark_the_kept_epoch_and_say_values(tmp_path: Path) -> None:
    page_of(fake_run(tmp_path / "run", digits()))
    root = ElementTree.parse(tmp_path / "run" / "figures" / "curves_accuracy.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    assert len([e for e in root.iter(f"{svg}circle") if "kept" in e.attrib["class"]]) == 3
    titles = [e.text for e in root.iter(f"{svg}title")]
    assert titles[2] == "epoch 3\nteacher  70.00%\nbaseline  70.00%\nstudent  70.00%"


def test_user_text_is_escaped(tmp_path: Path) -> None:
    content = result([ATTACK, 'a"b', "x\0\x1b&y\ud800"])
    content["experiment"] = ATTACK
    content["arms"]["student"]["model"] = ATTACK
    content["claim"] = {
        "source": ATTACK,
        "statement": ATTACK,
        "published": {"student": {ATTACK: ATTACK}},
        "measured": {},
    }
    folder = fake_run(tmp_path / "run", content)
    with (folder / "config.yaml").open("a", encoding="utf-8") as file:
        file.write(f"note: {ATTACK}\n")
    page = page_of(folder)
    assert "<script" not in NO_CODE.sub("", page.source)
    assert page.words.count("alert(1)") > 8
    for path in (folder / "figures").iterdir():
        assert "script>" not in [e.tag for e in ElementTree.parse(path).iter()]
    write_page([folder, fake_run(tmp_path / ATTACK.replace("/", "_"), digits())], tmp_path / "both.html")
    assert "<script" not in NO_CODE.sub("", Page(tmp_path / "both.html").source)


def test_several_runs_stand_in_the_given_order(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / f"seed={seed}", digits(seed=seed)) for seed in (3, 1)]
    write_page(folders, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    titles = [row[0][0] for row in page.rows]
    assert titles.index("seed=3") < titles.index("seed=1")
    assert [text for text, _ in page.row("seed=3")[:5]] == ["fake_kd", "kd", "4", "0.75", "3"]
    numbers = page.numbers("seed=3")[5:]
    assert numbers == pytest.approx([0.9, 0.7, 0.8, 0.1, 0.79, 0.77, 0.78])
    assert page.words.count("Resolved configuration") == 2
    assert [path.name for path in sorted((tmp_path / "figures").iterdir())] == ["parallel.svg", "students.svg"]


def test_seeds_are_pooled_without_a_verdict(tmp_path: Path) -> None:
    folders = [fake_run(tmp_path / f"seed={seed}", digits(seed=seed)) for seed in (0, 1)]
    better = json.loads((folders[1] / "result.json").read_text())
    better["arms"]["student"]["test"]["accuracy"] = 0.82
    (folders[1] / "result.json").write_text(json.dumps(better))
    hot = digits(seed=2)
    hot["method"]["temperature"] = 20.0
    folders.append(fake_run(tmp_path / "hot", hot))
    write_page(folders, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    row = page.row("fake_kd")
    assert [text for text, _ in row[:5]] == ["kd", "4", "0.75", "2", "0, 1"]
    assert row[-4][0] == "90.00% (one network)"
    assert row[-2][0] == "81.00 ± 1.41"
    assert row[-1][0] == "+11.00 ± 1.41"
    assert not re.search(r"supported|refuted|significan|inconclusive|better|proves", page.words, re.IGNORECASE)
    assert len(pools([read_run(folder) for folder in [*folders, folders[0]]])) == 1


def test_recipe_text_leaves_out_the_runs_seed_and_places_only() -> None:
    text = "seed: 1\ndata:\n  root: a\n  omit:\n  - 3\nlogger:\n  tags:\n  - x\nteacher:\n  seed: 5\n  kind: ema\n"
    assert recipe_text(text) == "data:\n  omit:\n  - 3\nteacher:\n  seed: 5\n  kind: ema"


@pytest.mark.parametrize("several", [False, True])
def test_run_without_a_teacher(tmp_path: Path, several: bool) -> None:
    folder = fake_run(tmp_path / "virtual", digits(arms=NO_TEACHER))
    folders = [folder, fake_run(tmp_path / "other", digits())] if several else [folder]
    write_page(folders, tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    if several:
        assert page.numbers("virtual")[5:] == pytest.approx([None, 0.7, 0.8, 0.1, None, 0.77, 0.78])
    else:
        assert page.numbers("test accuracy") == [0.7, 0.8]


def test_run_without_a_baseline_states_accuracies(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path / "run", digits(arms=("teacher", "student"))))
    assert "Test accuracy: teacher 90.00%, student 80.00%; one seed is no verdict." in page.words


def test_run_without_validation_has_no_accuracy_curve(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path / "run", digits(val=False), scalars=("train/loss",)))
    assert [text for text, _ in page.row("validation accuracy")] == ["-"] * 3
    assert "No validation accuracy was logged" in page.words
    assert not (tmp_path / "run" / "figures" / "curves_accuracy.svg").exists()
    assert (tmp_path / "run" / "figures" / "curves_loss.svg").exists()


def test_network_trained_elsewhere_has_dashes(tmp_path: Path) -> None:
    content = digits()
    content["arms"]["teacher"] |= {"epochs": None, "selected_epoch": None, "train_s": None, "images_per_s": None}
    page = page_of(fake_run(tmp_path / "run", content))
    for title in ("kept epoch", "training seconds", "images/s"):
        assert page.row(title)[0] == ("-", None)


def test_class_without_test_images(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path / "run", digits(empty=4)))
    assert [text for text, _ in page.row("4")] == ["-", "-", "-", "-", "0"]
    assert "no test images" in (tmp_path / "run" / "figures" / "per_class.svg").read_text()


def test_omitted_classes_and_their_corrections(tmp_path: Path) -> None:
    content = digits()
    content["data"] |= {"omitted": [3], "omitted_from": ["baseline", "student"]}
    entry = {"class": 3, "accuracy_before": 0.1, "accuracy_after": 0.9, "overall_after": 0.85, "bias": 3.5}
    content["arms"]["student"]["omitted"] = [{**entry, "rule": "fixed"}, {**entry, "rule": "oracle"}]
    content["arms"]["baseline"]["omitted"] = {**entry, "rule": "prior"}
    page = page_of(fake_run(tmp_path / "run", content))
    assert "Class 3 was left out of the training of baseline and student" in page.words
    assert page.row("3 (omitted)")
    assert page.numbers("student, 3") == [None, 3.5, 0.1, 0.9, 0.8, 0.85]
    rules = [row[1][0] for row in page.rows if row[0][0] in ("student, 3", "baseline, 3")]
    assert rules == ["prior", "fixed", "oracle (tuned on the test set)"]


def test_claim_stands_beside_the_measured_numbers(tmp_path: Path) -> None:
    content = digits()
    content["claim"] = {
        "source": "A paper",
        "statement": "74 errors",
        "published": {"teacher": {"accuracy": 0.95}, "student": {"errors": 74, "accuracy": 0.85, "speed": "fast"}},
        "measured": {"teacher": {"accuracy": 0.9}, "student": {"errors": 20, "accuracy": 0.8, "speed": None}},
    }
    page = page_of(fake_run(tmp_path / "run", content))
    assert "74 errors" in page.words and "A paper" in page.words
    assert page.numbers("student, errors") == [74, 20, -54]
    assert page.row("teacher, accuracy")[2][0] == "-5.00"
    assert [text for text, _ in page.row("student, speed")] == ["fast", "-", "-"]
    assert [text for text, _ in page.row("published")] == ["95.00%", "-", "74 errors; 85.00%; fast speed"]


def test_many_classes_are_listed(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path / "run", result([f"class {i}" for i in range(100)])))
    assert page.row("class 0 → class 1") == [("1", None), ("10.00%", 0.1)]
    assert "All 100 classes" in page.words
    assert not list((tmp_path / "run" / "figures").glob("confusion_*"))
    assert top_confusions([[5, 2, 3], [0, 9, 0], [2, 0, 6]], limit=2) == [(3, 0.3, 0, 2), (2, 0.25, 2, 0)]


def test_several_generations_have_curves(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", digits())
    with (folder / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("teacher-2,0,9,val/accuracy,0.4\nteacher-2,0,9,train/loss,nan\n")
    page_of(folder)
    assert "teacher-2" in (folder / "figures" / "curves_accuracy.svg").read_text()
    assert "teacher-2" not in (folder / "figures" / "curves_loss.svg").read_text()


def test_a_first_stage_is_shown_and_leaves_its_arm_the_style_of_its_line(tmp_path: Path) -> None:
    content = digits()
    content["arms"]["student"]["initial_epochs"] = 2
    content["method"]["initial_objective"] = "the hint alone"
    folder = fake_run(tmp_path / "run", content)
    lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    first = [f"student-initial,{epoch},{epoch},train/loss,0.5\n" for epoch in range(2)]
    (folder / "metrics.csv").write_text("".join([lines[0], *first, *lines[1:]]), encoding="utf-8")
    assert [text for text, _ in page_of(folder).row("kept epoch")] == ["3 of 4", "3 of 4", "3 of 4 (+ 2)"]
    assert "the hint alone" in (folder / "report.html").read_text(encoding="utf-8")
    loss = (folder / "figures" / "curves_loss.svg").read_text(encoding="utf-8")
    assert loss.index('class="curve student dash-0"') < loss.index('class="curve student dash-1"')
    assert loss.index(">student<") < loss.index(">student-initial<")


def test_folder_without_curves_or_configuration(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", digits())
    (folder / "metrics.csv").unlink()
    (folder / "config.yaml").unlink()
    page = page_of(folder)
    assert "There is no metrics.csv" in page.words
    assert "Resolved configuration" not in page.words
    assert pools([read_run(folder)] * 2) == []


def test_axes_end_on_round_values() -> None:
    axis = value_axis(0.353, 0.9, 100, 0, fraction=True)
    assert tick_texts(axis, percent=True) == ["20%", "40%", "60%", "80%", "100%"]
    assert tick_texts(value_axis(0.985, 0.9873, 0, 1, fraction=True), percent=True)[0] == "98.50%"
    assert value_axis(1.0, 1.0, 0, 1, fraction=True).high == 1
    assert tick_texts(value_axis(0.004, 17, 0, 1, fraction=False), percent=False) == ["0.01", "0.1", "1", "10"]
    assert value_axis(-1, 1, 0, 10, fraction=False)(0) == 5


def test_command_writes_into_the_folder_and_finds_runs_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("temperature=10", "temperature=2"):
        fake_run(tmp_path / "sweep" / name, digits())
    assert main([str(tmp_path / "sweep")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'sweep' / 'report.html'}\n"
    found = find_runs([tmp_path / "sweep", tmp_path / "sweep" / "temperature=2"])
    assert [path.name for path in found] == ["temperature=2", "temperature=10"]
    assert run_names([read_run(path) for path in found]) == ["temperature=2", "temperature=10"]


def test_command_writes_here_for_several_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(fake_run(tmp_path / name, digits())) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert main(folders) == 0
    assert capsys.readouterr().out == "report.html\n"
    assert main([*folders, "--out", "deep/page.html"]) == 0
    assert (tmp_path / "deep" / "page.html").read_text() == (tmp_path / "report.html").read_text()


def test_command_names_the_runs_that_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, status in enumerate(("done", "done", "running")):
        fake_run(tmp_path / f"run-{number}", digits(seed=number) | {"status": status})
    (fake_run(tmp_path / "begun", digits()) / "result.json").unlink()
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [f"Left out, it has not finished: {tmp_path / name}" for name in ("begun", "run-2")]


def test_command_without_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = digits() | {"status": "running"}
    fake_run(tmp_path / "run", unfinished)
    for folder in (tmp_path / "run", tmp_path / "nowhere"):
        assert main([str(folder)]) == 2
        assert str(folder) in capsys.readouterr().err
    fake_run(tmp_path / "done", digits())
    assert main([str(tmp_path / "run"), str(tmp_path / "done"), "--out", str(tmp_path / "page.html")]) == 0
    assert f"Left out, it holds no finished run: {tmp_path / 'run'}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no finished run"):
        write_page([tmp_path / "run"], tmp_path / "report.html")
    with pytest.raises(ConfigError, match="at least one"):
        write_page([], tmp_path / "report.html")


@pytest.mark.parametrize(
    "damage", ["half", "list", "key", "type", "schema", "square", "claim", "omitted", "binary", "nan"]
)
def test_command_names_a_damaged_result(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    folder = fake_run(tmp_path / "run", digits())
    path, content = folder / "result.json", digits()
    if damage == "key":
        del content["arms"]["student"]["test"]["nll"]
    elif damage == "type":
        content["arms"]["student"]["test"]["accuracy"] = "high"
    elif damage == "nan":
        content["arms"]["student"]["test"]["per_class_accuracy"][3] = float("nan")
    elif damage == "schema":
        content["schema"] = 2
    elif damage == "square":
        content["arms"]["student"]["test"]["confusion"].pop()
    elif damage == "claim":
        content["claim"] = {"source": "x", "statement": "y", "published": {"student": 0.9}}
    elif damage == "omitted":
        content["arms"]["student"]["omitted"] = [{"rule": "fixed"}]
    text = "[]" if damage == "list" else json.dumps(content)
    path.write_bytes(b"\xff\xfe" if damage == "binary" else text[: 200 if damage == "half" else None].encode())
    assert main([str(tmp_path)]) == 4
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "text", ["", "arm,epoch\n", "a,0,0,val/accuracy\n", "a,0,0,n,high\n", "a,x,0,n,1\n", "a,0,0,n,1,2\n", "\xff"]
)
def test_command_names_damaged_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    folder = fake_run(tmp_path / "run", digits())
    path = folder / "metrics.csv"
    whole = path.read_text()
    path.write_bytes((whole + text if text and not text.startswith("arm") else text).encode("latin-1"))
    assert main([str(folder)]) == 4
    assert str(path) in capsys.readouterr().err
    with pytest.raises(StoreError):
        read_run(folder)


def test_command_that_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fake_run(tmp_path / "run", digits())
    assert main([str(folder), "--out", str(folder / "result.json" / "page.html")]) == 2
    assert "Cannot write" in capsys.readouterr().err


def test_command_needs_no_torch_and_no_time(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", digits())
    code = (
        "import sys; from kd.report.__main__ import main; status = main(sys.argv[1:]);"
        "heavy = sorted({'torch', 'lightning', 'hydra', 'omegaconf', 'numpy', 'rich'} & set(sys.modules));"
        "sys.exit(heavy or status)"
    )
    before = os.times().children_user
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, timeout=60)
    assert os.times().children_user - before < 2
    assert (folder / "report.html").is_file()


def test_module_is_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kd.report", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr and str(tmp_path) in done.stderr
