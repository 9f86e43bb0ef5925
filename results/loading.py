"""Result sets as data frames."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True)
class ResultSet:
    """The tables of one or more experiments."""

    trials: pd.DataFrame
    metrics: pd.DataFrame
    checkpoints: pd.DataFrame
    predictions: pd.DataFrame

    def of(self, experiment: str) -> ResultSet:
        """Return one experiment's part."""
        tables = {name: frame[frame.experiment == experiment] for name, frame in vars(self).items()}
        return ResultSet(**tables)

    @classmethod
    def of_trials(cls, trials: pd.DataFrame) -> ResultSet:
        """Wrap a table of trials on its own."""
        from results.schema import TABLES

        others = {name: schema.empty_table().to_pandas() for name, schema in TABLES.items()}
        return cls(**{**others, "trials": trials})


def load(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], skip_damaged: bool = False
) -> ResultSet:
    """Load run directories.

    Columns that an older version did not write are null.

    Arguments:
        path: a run directory, a directory of them, a glob such as ``runs/*``, or several of these.
        skip_damaged: leave out tables that cannot be read, with a warning that names them.

    Raises:
        FileNotFoundError: if a path holds no result set.
        ResultSetError: naming a table that cannot be read, or one that a newer version wrote.
    """
    from results.schema import TABLES  # here, so that `import results` stays fast

    given = [path] if isinstance(path, str | os.PathLike) else list(path)
    runs = list(dict.fromkeys(run for one in given for run in _run_directories(os.fspath(one))))
    frames = {}
    for table, schema in TABLES.items():
        files = [run / f"{table}.parquet" for run in runs]
        parts = [_read(file, table, skip_damaged) for file in files if file.is_file()]
        filled = [part for part in parts if part is not None and part.num_rows]
        whole = _concatenate(filled) if filled else schema.empty_table()
        frames[table] = whole.to_pandas()
    return ResultSet(**frames)


def _concatenate(parts: list[pa.Table]) -> pa.Table:
    import pyarrow as pa

    from results.errors import ResultSetError

    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise ResultSetError(f"trials.parquet: of several runs: {error}; load them one by one") from None


def _read(file: Path, table: str, skip_damaged: bool) -> pa.Table | None:
    import pyarrow.parquet as pq

    from results.checking import check_table
    from results.errors import ResultSetError

    try:
        found = pq.read_table(file, partitioning=None)
    except Exception as error:  # of a damaged file the reader raises what it happens to raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        problem = f"{file}: not a whole Parquet table ({reason})"
    else:
        _check_version(file, found)
        try:
            return check_table(found, table)
        except ValueError as error:
            problem = f"{file}: {error}"
    if not skip_damaged:
        raise ResultSetError(
            f"{problem}; restore it, or load the rest with results.load(..., skip_damaged=True)"
        )
    warnings.warn(f"{problem}; left out", stacklevel=3)
    return None


def _check_version(file: Path, found: pa.Table) -> None:
    from results.errors import ResultSetError
    from results.schema import SCHEMA_VERSION

    said = (found.schema.metadata or {}).get(b"schema_version", b"0").decode("latin-1")
    if not said.isdecimal() or (said.lstrip("0") > "" and (len(said) > 9 or int(said) > SCHEMA_VERSION)):
        raise ResultSetError(
            f"{file}: written by a newer version of the program (schema {said}; this one reads up to "
            f"{SCHEMA_VERSION}); update the program"
        )


def _run_directories(path: str) -> list[Path]:
    candidates = sorted(Path(match) for match in glob.glob(path))
    found = [
        run for candidate in candidates for run in (candidate, *sorted(candidate.glob("*/"))) if _is_run(run)
    ]
    if not found:
        raise FileNotFoundError(
            f"{path}: no result set; expected a run directory with trials.parquet, or a glob of them"
        )
    return found


def _is_run(directory: Path) -> bool:
    return (directory / "trials.parquet").is_file()
