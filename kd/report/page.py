"""The page itself: one run, or several beside each other."""

from collections.abc import Sequence
from pathlib import Path

from kd.errors import ConfigError
from kd.files import FULL, write_text
from kd.report import words
from kd.report.comparison import comparison, run_names
from kd.report.interactive import STYLE, script_policy, scripts
from kd.report.markup import Html, join, tag
from kd.report.pictures import Picture
from kd.report.read import Run, read_run
from kd.report.section import headline, pictures, section
from kd.report.sweep import sweep_pictures

PAGE_STYLE = "".join(Path(__file__).with_name(name).read_text("utf-8") for name in ("page.css", "panels.css"))
FIGURES = "figures"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "  # no address: nothing is fetched


def write_page(folders: list[Path], target: Path, without_result: Sequence[str] = ()) -> None:
    """Write the page of one run folder, and its pictures beside it, or one page that compares several.

    `without_result`: what a reader must know to be missing from the comparison.

    Raises:
        ConfigError: a folder holds no finished run, or the page cannot be written.
        StoreError: a run's result.json or metrics.csv is damaged.
    """
    if not folders:
        raise ConfigError("A page needs at least one run folder.")
    runs = [read_run(folder) for folder in folders]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figures = target.parent / FIGURES
        write_text(target, _one(runs[0], figures) if len(runs) == 1 else _several(runs, figures, without_result))
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ConfigError(f"Cannot write {target}: {error.strerror or error}. Choose another file.") from error


def _one(run: Run, figures: Path) -> str:
    drawn = pictures(run)
    _write_figures(figures, drawn)
    return _document(f"{run.experiment}, seed {run.seed}", _header(run), headline(run), section(run, drawn))


def _several(runs: list[Run], figures: Path, without_result: Sequence[str]) -> str:
    """The comparison, with pictures of its own, and below it each run folded up."""
    names = run_names(runs)
    drawn = sweep_pictures(runs, names)
    _write_figures(figures, drawn)
    experiments = list(dict.fromkeys(run.experiment for run in runs))
    title = experiments[0] if len(experiments) == 1 else f"{len(experiments)} experiments"
    header = tag("header", tag("h1", title), tag("p", f"{len(runs)} runs", class_="settings"))
    parts = [
        tag(
            "details",
            tag("summary", name, " ", tag("span", " · ".join(words.settings(run)), class_="muted")),
            headline(run),
            section(run, pictures(run)),
            class_="run",
            id=f"run-{number}",
        )
        for number, (run, name) in enumerate(zip(runs, names, strict=True), 1)
    ]
    told = _missing(without_result)
    compared = comparison(runs, drawn)
    return _document(f"{title}: {len(runs)} runs", header, *told, compared, tag("h2", "Each run"), *parts)


def _missing(lines: Sequence[str]) -> list[Html]:
    if not lines:
        return []
    return [
        tag("section", tag("h2", "Without a result"), tag("ul", *(tag("li", line) for line in lines)), class_="card")
    ]


def _header(run: Run) -> Html:
    minimised = run.method.get("objective")
    said = [tag("span", phrase) for phrase in words.settings(run)]
    if minimised:
        said.append(tag("span", "student minimises ", tag("code", minimised)))
    return tag("header", tag("h1", run.experiment), tag("p", *said, class_="settings"))


def _document(title: str, *parts: Html) -> str:
    """The page around its parts. Its policy lets a browser load nothing, whatever a class may be called."""
    body = join([tag("main", *parts), scripts()])
    head = join(
        [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}{script_policy(body)}">'),
            tag("title", title),
            tag("style", Html(STYLE + PAGE_STYLE)),
        ]
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _write_figures(folder: Path, drawn: dict[str, Picture]) -> None:
    if drawn:
        folder.mkdir(exist_ok=True)
    for picture in drawn.values():
        write_text(folder / f"{picture.name}.svg", picture.file())
