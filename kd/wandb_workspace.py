"""Create the saved W&B dashboard of a project's students: T x alpha, parallel coordinates, accuracy against T, classes.

It shows what `python -m kd.run logger=wandb` logs. Without a login, or with --dry-run, its specification is printed as
JSON. Each call creates a new view; views are deleted on their page.
"""

import argparse
import importlib.util
import json
import re
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from kd.errors import ConfigError, UserError
from kd.files import RESULT
from kd.tracking import names, server
from kd.tracking.names import STUDENT

NAME = "kd: students by T and alpha"
SAVE_TIMEOUT_S = 60.0
UNREACHABLE = 6
LOW_TO_HIGH = (("#440154", 0), ("#21918c", 50), ("#fde725", 100))  # the ends and the middle of viridis
ACCURACY, VALIDATION = names.test(STUDENT, "accuracy"), names.selected(STUDENT, "accuracy")
GAIN = names.points_over(names.BASELINE)


def specification(entity: str, project: str, classes: list[str]) -> Any:
    """The dashboard as a `wandb_workspaces.workspaces.Workspace`, not yet saved.

    `classes`: what each gets a panel of its own for; if none are known, one panel has them all.
    """
    ws, wr = _library()
    sections = {
        "T x alpha": [_scatter("T", "alpha", ACCURACY), _scatter("T", "alpha", VALIDATION)],
        "Parallel coordinates": [_parallel()],
        "Accuracy against T, seeds pooled": [
            *(_bars([metric], metric) for metric in (ACCURACY, VALIDATION, GAIN)),
            _bars([names.test(arm, "accuracy") for arm in (names.TEACHER, names.BASELINE, STUDENT)], "all arms"),
            wr.ScatterPlot(title="with the running mean", **_axes("T", ACCURACY, "alpha"), running_ymean=True),
        ],
        "Classes": _classes(classes),
        "Curves": [_curve("val/accuracy"), _curve("train/loss")],
    }
    columns = [f"config:{name}.value" for name in names.COLUMNS]
    columns += [f"summary:{name}" for name in (VALIDATION, ACCURACY, GAIN)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=name, panels=_placed(panels), is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=names.GLOBAL_STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=f"Metric('JobType') = '{STUDENT}'",
            groupby=[ws.Metric("Group")],
            order=[ws.Ordering(ws.Summary(VALIDATION), ascending=False)],
            pinned_columns=columns,
        ),
    )


def view(workspace: Any) -> Any:
    """What is saved of a workspace: the run table is grouped by sweep, while a panel shows each run, or groups by T."""
    model = workspace._to_model()
    model.spec.section.settings.use_runs_table_grouping_in_panels = False
    return model


def main(arguments: list[str] | None = None) -> int:
    """Create the dashboard; return the exit status: 0 done, 2 bad input or no login, 6 the server did not take it."""
    parser = argparse.ArgumentParser(
        prog="python -m kd.wandb_workspace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="where the runs are, as in the page's address")
    parser.add_argument("--dry-run", action="store_true", help="print the specification, connect to nothing")
    parser.add_argument(
        "--like", type=Path, metavar="FOLDER", help="a run or sweep whose class names the per-class panels have"
    )
    given = parser.parse_args(arguments)
    try:
        entity, project = _entity_and_project(given.project)
        if importlib.util.find_spec("wandb_workspaces") is None:
            raise ConfigError("The dashboard needs wandb-workspaces: pip install wandb-workspaces")
        workspace = specification(entity, project, _class_names(given.like) if given.like else [])
        if given.dry_run or not server.has_key():
            print(_as_json(workspace))
            if not given.dry_run:
                raise ConfigError(
                    "There is no W&B login, so that nothing was created; above is what would be. Run `wandb login`, or "
                    "set WANDB_API_KEY."
                )
            return 0
        print(f"dashboard: {_save(workspace)}")
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.status
    except ConnectionError as error:
        print(f"Error: {error}", file=sys.stderr)
        return UNREACHABLE
    return 0


def _library() -> tuple[Any, Any]:
    """The package's two modules: workspaces, and the panels in them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about how the package is written
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    return ws, wr


def _axes(x: str, y: str, z: str) -> dict[str, Any]:
    """The axes of a scatter plot by name; z is the colour. T is drawn logarithmically."""
    _, wr = _library()

    def source(name: str) -> Any:
        return wr.Config(name) if name in names.COLUMNS else wr.SummaryMetric(name)

    gradient = [wr.GradientPoint(color=color, offset=offset) for color, offset in LOW_TO_HIGH]
    return {"x": source(x), "y": source(y), "z": source(z), "log_x": x == "T", "gradient": gradient}


def _scatter(x: str, y: str, z: str) -> Any:
    _, wr = _library()
    return wr.ScatterPlot(title=f"{z} by {x} and {y}", **_axes(x, y, z))


def _parallel() -> Any:
    _, wr = _library()
    settings = ("method", "T", "alpha", "seed")
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), display_name=name) for name in settings]
    columns += [
        wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(name), display_name=shown)
        for name, shown in ((VALIDATION, "validation accuracy"), (ACCURACY, "test accuracy"))
    ]
    gradient = [wr.GradientPoint(color=color, offset=offset) for color, offset in LOW_TO_HIGH]
    return wr.ParallelCoordinatesPlot(title="settings to accuracy", columns=columns, gradient=gradient)


def _bars(metrics: list[str], title: str) -> Any:
    """Bars by T: the mean of all seeds and alphas that are shown, with their standard deviation."""
    _, wr = _library()
    return wr.BarPlot(
        title=f"{title} by T",
        metrics=metrics,
        orientation="v",
        groupby=wr.Config("T"),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def _classes(classes: list[str]) -> list[Any]:
    _, wr = _library()
    if classes:
        return [_bars([names.class_accuracy(STUDENT, name)], name) for name in classes]
    pattern = names.class_accuracy(STUDENT, ".+")
    return [wr.LinePlot(title="accuracy on each class", x=names.GLOBAL_STEP, metric_regex=pattern)]


def _curve(name: str) -> Any:
    _, wr = _library()
    return wr.LinePlot(
        title=f"{name} by T",
        x=names.GLOBAL_STEP,
        y=[f"{STUDENT}/{name}"],
        groupby=wr.Config("T"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def _placed(panels: list[Any]) -> list[Any]:
    """The panels beside each other, three to a row of 24 columns; a single one over the whole width."""
    _, wr = _library()
    width, height = (24, 10) if len(panels) == 1 else (8, 8)
    for at, panel in enumerate(panels):
        panel.layout = wr.Layout(x=at % 3 * width, y=at // 3 * height, w=width, h=height)
    return panels


def _entity_and_project(given: str) -> tuple[str, str]:
    found = re.fullmatch(r"([\w.-]+)/([^\s/\\#?%:]{1,128})", given)
    if found is None:
        raise ConfigError(
            f"Expected ENTITY/PROJECT, as in the address of the project's page (my-team/kd), but got {given!r}."
        )
    return found[1], found[2]


def _class_names(folder: Path) -> list[str]:
    """The class names of the first run at or below a folder. Raises `ConfigError` if there is none."""
    found = next(iter(sorted(folder.rglob(RESULT))), None)
    if found is None:
        raise ConfigError(f"No finished run (a {RESULT}) at or below --like {folder}.")
    try:
        return [str(name) for name in json.loads(found.read_text(encoding="utf-8"))["data"]["classes"]]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"Cannot read the class names in {found}: {error}") from error


def _as_json(workspace: Any) -> str:
    model = view(workspace)
    content = {"entity": model.entity, "project": model.project, "name": model.display_name}
    content["spec"] = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return json.dumps(content, indent=2)


def _save(workspace: Any) -> str:
    """Save the dashboard and return its address. Raises `ConnectionError` if the server does not take it in time."""
    if not server.reachable():
        raise ConnectionError(f"{server.host()} cannot be reached; --dry-run shows the dashboard without it.")
    done: list[str | Exception] = []

    def save() -> None:
        model = view(workspace)
        try:
            object.__setattr__(workspace, "_to_model", lambda: model)
            workspace.save()
            done.append(str(workspace.url))
        except Exception as error:  # W&B's own, of many kinds: said to the user below
            done.append(error)

    thread = threading.Thread(target=save, daemon=True)  # W&B tries again for minutes
    thread.start()
    thread.join(SAVE_TIMEOUT_S)
    where = f"{workspace.entity}/{workspace.project} on {server.host()}"
    if not done:
        raise ConnectionError(
            f"{server.host()} did not answer within {SAVE_TIMEOUT_S:g} s; nothing is known of {where}."
        )
    if isinstance(done[0], Exception):
        raise ConnectionError(
            f"The dashboard was not saved in {where}: {done[0]}. Does the project exist, and is it yours?"
        )
    return done[0]


if __name__ == "__main__":
    sys.exit(main())
