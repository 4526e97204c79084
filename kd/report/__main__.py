"""`python -m kd.report RUN_OR_SWEEP_FOLDER...`: the page of one run, or the comparison of several."""

import argparse
import sys
from pathlib import Path

from kd.errors import UserError
from kd.report.missing import missing, shortened
from kd.report.page import write_page
from kd.report.read import find_runs, unfinished


def main(arguments: list[str] | None = None) -> int:
    """Write the page, print where it is, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kd.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_SWEEP_FOLDER", help="searched for runs")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: report.html in the folder; here, if there are several"
    )
    given = parser.parse_args(arguments)
    target = given.out or (given.folders[0] if len(given.folders) == 1 else Path()) / "report.html"
    try:
        without_result = shortened(missing(given.folders))
        write_page(find_runs(given.folders), target, without_result)
        for folder in unfinished(given.folders):
            print(f"Left out, it has not finished: {folder}", file=sys.stderr)
        for line in without_result:
            print(f"Without a result: {line}", file=sys.stderr)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.status
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
