"""Result sets as data frames."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from results.errors import ResultSetError
from results.remote import RemoteDirectory, StorageError, is_uri, name_and_parent, reason

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
        """Return the part of one experiment."""
        tables = {name: frame[frame.experiment == experiment] for name, frame in vars(self).items()}
        return ResultSet(**tables)

    @classmethod
    def of_trials(cls, trials: pd.DataFrame) -> ResultSet:
        """Make a result set of a trials table alone."""
        from results.schema import TABLES

        others = {name: schema.empty_table().to_pandas() for name, schema in TABLES.items()}
        return cls(**{**others, "trials": trials})


def load(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], skip_damaged: bool = False
) -> ResultSet:
    """Load run directories.

    Columns that an older version of the program did not write are null.

    Arguments:
        path: a run directory, a directory of run directories, a glob such as ``runs/*``, or a list of these;
            each may be a path or a URI such as ``s3://bucket/runs/*``.
        skip_damaged: leave out tables that cannot be read, with a warning that names them.

    Raises:
        FileNotFoundError: if a path has no result set.
        ResultSetError: if a table cannot be read, or a newer version wrote it.
        StorageError: if a URI is invalid, or its storage cannot be reached.
    """
    from results.schema import TABLES  # here, so that `import results` stays fast

    given = [path] if isinstance(path, str | os.PathLike) else list(path)
    runs = list(dict.fromkeys(run for one in given for run in _run_directories(os.fspath(one))))
    frames = {}
    for table, schema in TABLES.items():
        parts = [_read(run, table, skip_damaged) for run in runs if _has(run, f"{table}.parquet")]
        if table == "trials":
            _check_names(dict(zip((str(run) for run in runs), parts, strict=True)))
        filled = [part for part in parts if part is not None and part.num_rows]
        whole = _concatenate(filled) if filled else schema.empty_table()
        frames[table] = whole.to_pandas()
    return ResultSet(**frames)


def _check_names(runs: Mapping[str, pa.Table | None]) -> None:
    """Refuse two runs of the same name, by which rows of different tables are matched."""

    owners: dict[str, str] = {}
    for run, trials in runs.items():
        for name in trials["experiment"].unique().to_pylist() if trials else []:
            if name in owners:
                raise ResultSetError(
                    f"{owners[name]} and {run}: both are runs named {name}; expected different names:"
                    " load them one by one, or rerun one of them with another --name"
                )
            owners[name] = run


def _concatenate(parts: list[pa.Table]) -> pa.Table:
    import pyarrow as pa

    known = {name for part in parts for name in part.column_names if part[name].null_count < part.num_rows}
    try:
        return pa.concat_tables([_untyped(part, known) for part in parts], promote_options="permissive")
    except pa.ArrowException as error:
        raise ResultSetError(
            f"trials.parquet: the runs do not fit together: {error}; load them one by one"
        ) from None


def _untyped(part: pa.Table, known: Collection[str]) -> pa.Table:
    """Take the types of columns that are null in all of one run's rows and not in all of another's."""
    import pyarrow as pa

    for place, name in enumerate(part.column_names):
        if name in known and part[name].null_count == part.num_rows:
            field = part.schema.field(name).with_type(pa.null())
            part = part.set_column(place, field, pa.nulls(part.num_rows))
    return part


def _read(run: Path | RemoteDirectory, table: str, skip_damaged: bool) -> pa.Table | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from results.checking import check_table

    name = f"{table}.parquet"
    file = f"{run}/{name}"
    try:
        # Given a path, pyarrow opens it twice, and a snapshot may replace it between.
        source = pa.OSFile(file) if isinstance(run, Path) else pa.BufferReader(_fetch(run, name))
        found = pq.read_table(source, partitioning=None)
    except StorageError:
        raise
    except Exception as error:  # damaged files make the reader raise all kinds of errors
        problem = f"{file}: not a whole Parquet table ({reason(error)})"
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


def _check_version(file: str, found: pa.Table) -> None:
    from results.schema import SCHEMA_VERSION

    said = (found.schema.metadata or {}).get(b"schema_version", b"0").decode("latin-1")
    if not said.isdecimal() or (said.lstrip("0") > "" and (len(said) > 9 or int(said) > SCHEMA_VERSION)):
        raise ResultSetError(
            f"{file}: written by a newer version of the program (schema {said}; this one reads up to "
            f"{SCHEMA_VERSION}); update the program"
        )


def _fetch(run: RemoteDirectory, name: str) -> bytes:
    try:
        return run.read(name)
    except Exception as error:
        raise StorageError(f"{run}/{name}: cannot be read: {reason(error)}") from None


def _run_directories(path: str) -> list[Path | RemoteDirectory]:
    candidates = _remote(path) if is_uri(path) else _matches(path)
    found = [
        run
        for candidate in candidates
        for run in (candidate, *_directories(candidate))
        if _has(run, "trials.parquet")
    ]
    if not found:
        raise FileNotFoundError(
            f"{path}: no result set; expected a run directory with trials.parquet, or a glob of them"
        )
    return found


def _matches(path: str) -> list[Path]:
    """Return what a path, or a glob, names; a directory may be called ``[v2]``."""
    return [Path(path)] if os.path.lexists(path) else sorted(map(Path, glob.glob(path)))


def _remote(uri: str) -> list[RemoteDirectory]:
    """Find the directories that a URI or a glob names.

    Raises:
        StorageError: if the URI is invalid, or its storage cannot be reached.
    """
    root, pattern = uri, ""
    while glob.has_magic(root.partition("?")[0]):
        name, root = name_and_parent(root)
        pattern = f"{name}/{pattern}"
    directory = RemoteDirectory(root)
    try:
        directory.directories()
        return list(directory.glob(pattern)) if pattern else [directory]
    except Exception as error:  # each fsspec filesystem raises its own kinds
        raise StorageError(f"{uri}: cannot be read: {reason(error)}") from None


def _directories(run: Path | RemoteDirectory) -> list[Path] | list[RemoteDirectory]:
    if isinstance(run, Path):
        return sorted(run.glob("*/"))
    return [run.child(name) for name in run.directories()]


def _has(run: Path | RemoteDirectory, name: str) -> bool:
    return (run / name).is_file() if isinstance(run, Path) else run.has(name)
