"""Result sets as data frames."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ResultSet:
    """The tables of one or more experiments."""

    trials: pd.DataFrame
    metrics: pd.DataFrame
    checkpoints: pd.DataFrame
    predictions: pd.DataFrame


def load(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> ResultSet:
    """Load run directories.

    Arguments:
        path: a run directory, a directory of them, a glob such as ``runs/*``, or several of these.

    Raises:
        FileNotFoundError: if a path holds no result set.
    """
    # Imported here so that `import results` stays fast.
    import pandas as pd
    import pyarrow.parquet as pq

    from results.schema import TABLES

    given = [path] if isinstance(path, str | os.PathLike) else list(path)
    runs = [run for one in given for run in _run_directories(os.fspath(one))]
    frames = {}
    for table, schema in TABLES.items():
        files = [run / f"{table}.parquet" for run in runs]
        parts = [pq.read_table(file).to_pandas() for file in files if file.is_file()]
        filled = [part for part in parts if len(part)] or parts[:1] or [schema.empty_table().to_pandas()]
        frames[table] = pd.concat(filled, ignore_index=True)
    return ResultSet(**frames)


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
