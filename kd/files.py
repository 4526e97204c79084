"""A run folder's files: their names, and writing them so that they are whole or not there."""

import json
import os
from pathlib import Path
from typing import Any

RESULT, CONFIG, METRICS, EXAMPLES = "result.json", "config.yaml", "metrics.csv", "examples.json"
#: of a job of a sweep: what it printed, and why it failed
LOG, ERROR = "log.txt", "error.txt"
#: what may differ between two runs of the same experiment without changing what they find
ELSEWHERE = ("store", "logger", "force", "debug", "latency", "join")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is never half there: beside its place, synced, then moved."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
