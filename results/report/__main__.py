"""``python -m results.report runs/NAME...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from results.errors import ResultSetError
from results.loading import load
from results.report.page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m results.report",
        description="Write a page and figures about one run, or one page about several.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory, directory of them, or glob")
    parser.add_argument(
        "--output", type=Path, help="directory; RUN/report for one run directory, ./report otherwise"
    )
    options = parser.parse_args(arguments)
    try:
        results = load(options.runs)
        one = Path(options.runs[0])
        is_run = len(options.runs) == 1 and (one / "trials.parquet").is_file()
        page = write_report(results, options.output or (one / "report" if is_run else Path("report")))
    except (FileNotFoundError, ResultSetError) as error:
        print(error, file=sys.stderr)
        return 2
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
