"""``python -m results.report runs/NAME...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from results.errors import ResultSetError
from results.loading import ResultSet, load
from results.remote import RemoteDirectory, StorageError, below, is_uri, reason
from results.report.page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m results.report",
        description="Write a page and figures about one run, or one page about several.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run directory, directory of run directories, or glob; a path or a URI",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="directory for the report (default RUN/report for one run directory, otherwise ./report)",
    )
    options = parser.parse_args(arguments)
    try:
        results = load(options.runs)
        page = _write(results, options.runs, options.output)
    except (OSError, ResultSetError, StorageError) as error:
        print(error, file=sys.stderr)
        return 2
    print(page)
    return 0


def _write(results: ResultSet, runs: Sequence[str], output: Path | None) -> Path | str:
    """Write the report into ``output``; by default beside the tables of the run, if there is only one."""
    [one, *others] = runs
    if output or others:
        return write_report(results, output or Path("report"))
    if not is_uri(one):
        is_run = (Path(one) / "trials.parquet").is_file()
        return write_report(results, Path(one) / "report" if is_run else Path("report"))
    try:
        run = RemoteDirectory(one)
        if not run.has("trials.parquet"):
            return write_report(results, Path("report"))
        with TemporaryDirectory() as directory:
            page = write_report(results, Path(directory))
            run.child("report").put(Path(directory))
        return below(one, f"report/{page.name}")
    except OSError as error:
        raise StorageError(f"{one}: the report cannot be written: {reason(error)}") from None


if __name__ == "__main__":
    sys.exit(main())
