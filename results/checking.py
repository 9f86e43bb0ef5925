"""Checks of tables that anybody may have written: only columns and types of the schema are accepted."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from results.schema import HYPERPARAMETER_PREFIX, STATUSES, STRING, TABLES

REQUIRED: Final = {
    "trials": ("experiment", "trial_id", "method", "phase"),
    "metrics": ("experiment", "trial_id", "method", "phase", "evaluation"),
    "checkpoints": ("experiment", "trial_id", "method", "path"),
    "predictions": ("experiment", "trial_id", "method", "phase", "seed", "example_id", "label", "prediction"),
}
"""Columns that must not have nulls: rows are found and compared by them."""

KNOWN: Final = {
    "phase": ("search", "confirm"),
    "status": STATUSES,
}

LONGEST_NAME: Final = 200

FIRST, LAST = datetime(1970, 1, 1), datetime(9999, 1, 1)


def check_table(found: pa.Table, table: str) -> pa.Table:
    """Return a table with the columns and types of its schema, then hyperparameters, and no other columns.

    Missing columns are null.

    Raises:
        ValueError: naming the column that does not match, and what was expected.
    """
    twice = [name for name, count in Counter(found.column_names).items() if count > 1]
    if twice:
        raise ValueError(f"column {twice[0]!r} appears twice; expected each column once")
    columns = {field.name: _column(found, field) for field in TABLES[table]}
    for name in REQUIRED[table]:
        if columns[name].null_count:
            raise ValueError(f"column {name!r} has nulls; expected a value in every row")
    for name, known in KNOWN.items():
        if name in columns and (unknown := sorted(set(_texts(columns[name])) - set(known))):
            raise ValueError(f"column {name!r} has {unknown[0]!r}; expected {', '.join(known)}")
    if table == "trials":
        columns |= {
            name: _hyperparameter(name, found[name])
            for name in found.column_names
            if name.startswith(HYPERPARAMETER_PREFIX) and name not in columns
        }
    for name in ("experiment", "trial_id", "method", "kind"):
        if name in columns:
            _check_names(name, columns[name])
    checked = pa.table(columns)
    key = ["experiment", "trial_id", *(["example_id"] if table == "predictions" else [])]
    if table in ("trials", "predictions") and checked.group_by(key).aggregate([]).num_rows < len(checked):
        raise ValueError(f"two rows have the same {', '.join(key)}; expected one row each")
    return checked


def _column(found: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in found.column_names:
        return pa.chunked_array([pa.nulls(found.num_rows, field.type)])
    try:
        column = found[field.name].cast(field.type)
    except pa.ArrowException:
        raise ValueError(
            f"column {field.name!r} is of type {found[field.name].type}; expected {field.type}"
        ) from None
    if pa.types.is_floating(field.type):
        _check_finite(field.name, column)
    if pa.types.is_timestamp(field.type):
        first, last = (pa.scalar(time, pa.timestamp("us")).cast(field.type) for time in (FIRST, LAST))
        if pc.any(pc.or_(pc.less(column, first), pc.greater(column, last))).as_py():
            raise ValueError(f"column {field.name!r} has a time out of range; expected years 1970 to 9998")
    return column


def _hyperparameter(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(STRING)
        _check_names(name, column)
    elif pa.types.is_floating(column.type):
        _check_finite(name, column)
    elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise ValueError(f"column {name!r} is of type {kind}; expected numbers, texts or booleans")
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise ValueError(f"column {name[:LONGEST_NAME]!r} is not a valid hyperparameter name")
    return column


def _check_finite(name: str, column: pa.ChunkedArray) -> None:
    # NaN is allowed: pandas writes it for nulls.
    if pc.any(pc.is_inf(column)).as_py():
        raise ValueError(f"column {name!r} has infinite numbers; expected finite ones, or nulls")


def _check_names(name: str, column: pa.ChunkedArray) -> None:
    """Refuse names that would break a line of a table or send control codes to the terminal."""
    for text in _texts(column):
        if not text or not text.isprintable() or len(text) > LONGEST_NAME:
            raise ValueError(
                f"column {name!r} has {text[:40]!r}; expected 1 to {LONGEST_NAME} printable characters"
            )


def _texts(column: pa.ChunkedArray) -> list[str]:
    return [text for text in column.unique().to_pylist() if text is not None]
