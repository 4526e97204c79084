"""The curves of a run, read from its metrics.csv without the libraries that logged them."""

import csv
from pathlib import Path

from kd.errors import StoreError

#: label, then scalar, then (epoch counted from 1, value) in order
Curves = dict[str, dict[str, list[tuple[int, float]]]]


def read_curves(path: Path) -> Curves:
    """Read what was logged per epoch. A folder without the file has none. Raises `StoreError` if it is damaged."""
    if not path.is_file():
        return {}
    found: dict[str, dict[str, dict[int, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, strict=True)
            if not {"arm", "epoch", "name", "value"} <= set(rows.fieldnames or ()):
                raise ValueError(f"its first line is {rows.fieldnames}")
            for row in rows:
                if None in row.values() or None in row:
                    raise ValueError(f"line {rows.line_num} does not have {len(rows.fieldnames or ())} fields")
                value = float(row["value"])
                if row["epoch"]:
                    found.setdefault(row["arm"], {}).setdefault(row["name"], {})[int(row["epoch"]) + 1] = value
    except (ValueError, csv.Error) as error:
        raise StoreError(f"{path} is damaged: {error}. Delete the folder {path.parent} and run it again.") from error
    return {arm: {name: sorted(points.items()) for name, points in by.items()} for arm, by in found.items()}
