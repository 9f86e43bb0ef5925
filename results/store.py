"""The journal (one file per trial) and the tables made of it, each replaced atomically."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from results.schema import HYPERPARAMETER_PREFIX, TABLES

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrialRecord:
    """All rows of one trial. Missing columns are null."""

    trial: Row
    metrics: Sequence[Row] = ()
    checkpoints: Sequence[Row] = ()
    predictions: Sequence[Row] = ()

    @property
    def rows(self) -> dict[str, Sequence[Row]]:
        """Its rows by table."""
        return {
            "trials": [self.trial],
            "metrics": self.metrics,
            "checkpoints": self.checkpoints,
            "predictions": self.predictions,
        }


def write_record(run_directory: Path, record: TrialRecord) -> None:
    """Journal a trial at ``journal/<trial_id>.json``, replacing what was there atomically.

    Raises:
        ValueError: if the trial's id is not a plain file name, or a column is not in the schema.
    """
    trial_id = str(record.trial.get("trial_id"))
    if not _PLAIN_NAME.fullmatch(trial_id):
        raise ValueError(f"trial_id: expected letters, digits, '.', '_' and '-', got {trial_id!r}")
    for table, rows in record.rows.items():
        _check_columns(table, rows)
    plain = {table: [_plain(row) for row in rows] for table, rows in record.rows.items()}
    journal = run_directory / "journal"
    journal.mkdir(exist_ok=True)
    _replace(journal / f"{trial_id}.json", json.dumps(plain, allow_nan=False).encode())


def read_journal(run_directory: Path) -> list[TrialRecord]:
    """Read what :func:`write_record` wrote, in the order in which trials took turns; times are ISO texts."""
    files = sorted((run_directory / "journal").glob("*.json"))
    contents = [json.loads(file.read_bytes()) for file in files]
    records = [
        TrialRecord(content["trials"][0], content["metrics"], content["checkpoints"], content["predictions"])
        for content in contents
    ]
    return sorted(records, key=_turn)


def _turn(record: TrialRecord) -> tuple[bool, int, str]:
    row = record.trial
    return row.get("phase") == "confirm", row.get("trial_number") or 0, row.get("started_at") or ""


def write_snapshot(run_directory: Path) -> None:
    """Make the tables anew from the journal; a reader sees the old table or the new one, never half."""
    records = read_journal(run_directory)
    for table in TABLES:
        rows = [row for record in records for row in record.rows[table]]
        if rows or table != "predictions":
            sink = pa.BufferOutputStream()
            pq.write_table(make_table(table, rows), sink, compression="zstd")
            _replace(run_directory / f"{table}.parquet", sink.getvalue())


def make_table(table: str, rows: Sequence[Row]) -> pa.Table:
    """Make an Arrow table of rows; ``hp_*`` columns get the narrowest type that holds their values."""
    schema = TABLES[table]
    hyperparameters = dict.fromkeys(
        name for row in rows for name in row if name.startswith(HYPERPARAMETER_PREFIX)
    )
    for name in hyperparameters:
        schema = schema.append(_hyperparameter_field(name, (row.get(name) for row in rows)))
    columns = [
        pa.array([_cell(row.get(field.name), field.type) for row in rows], field.type) for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _hyperparameter_field(name: str, values: Iterable[Any]) -> pa.Field:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int}:
        kind = pa.int64()
    elif kinds == {bool}:
        kind = pa.bool_()
    elif kinds <= {int, float}:
        kind = pa.float64()
    else:
        kind = pa.string()
    description = f"hyperparameter {name.removeprefix(HYPERPARAMETER_PREFIX)}"
    return pa.field(name, kind, metadata={"description": description})


def _cell(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_timestamp(kind):
        return datetime.fromisoformat(value) if isinstance(value, str) else value
    if pa.types.is_string(kind) and not isinstance(value, str):
        return json.dumps(value)
    if pa.types.is_floating(kind):
        return float(value) if math.isfinite(value) else None
    return value


def _check_columns(table: str, rows: Sequence[Row]) -> None:
    known = set(TABLES[table].names)
    for row in rows:
        unknown = [
            name
            for name in row
            if name not in known and not (table == "trials" and name.startswith(HYPERPARAMETER_PREFIX))
        ]
        if unknown:
            raise ValueError(f"{table}: unknown column {unknown[0]!r}; known: {', '.join(sorted(known))}")


def _plain(row: Row) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in row.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    return value


def _replace(path: Path, content: Any) -> None:
    """Write a file beside ``path`` and move it there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
