"""The journal (one file per trial) and the tables made from it, each file replaced atomically."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from results.errors import ResultSetError
from results.schema import HYPERPARAMETER_PREFIX, TABLES

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

TRIALS_FILE = "trials.parquet"

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
        """The rows by table."""
        return {
            "trials": [self.trial],
            "metrics": self.metrics,
            "checkpoints": self.checkpoints,
            "predictions": self.predictions,
        }


def write_record(run_directory: Path, record: TrialRecord) -> None:
    """Journal a trial in ``journal/<trial_id>.json``, atomically replacing its earlier record.

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
    replace_file(journal / f"{trial_id}.json", json.dumps(plain, allow_nan=False).encode())


def remove_record(run_directory: Path, trial_id: str) -> None:
    """Remove a trial from the journal, and so from the next snapshot."""
    (run_directory / "journal" / f"{trial_id}.json").unlink(missing_ok=True)


def drop_checkpoint(run_directory: Path, trial_id: str) -> None:
    """Record that a trial's checkpoint was removed, and leave the rest of its record as it is."""
    record = _parse(run_directory / "journal" / f"{trial_id}.json")
    write_record(run_directory, replace(record, checkpoints=[]))


def read_journal(run_directory: Path) -> list[TrialRecord]:
    """Read what :func:`write_record` wrote, in the order of the trials' turns; times are ISO texts."""
    files = sorted((run_directory / "journal").glob("*.json"))
    return sorted(map(_parse, files), key=_turn)


def _parse(file: Path) -> TrialRecord:
    try:
        content = json.loads(file.read_bytes())
        trial = content["trials"][0]
        tables = [content["metrics"], content["checkpoints"], content["predictions"]]
        if not all(isinstance(row, dict) for row in (trial, *chain(*tables))):
            raise TypeError("a row is not a JSON object")
        if not isinstance(trial.get("trial_number"), int | None):
            raise TypeError("trial_number is not an integer")
        if not isinstance(trial.get("started_at"), str | None):
            raise TypeError("started_at is not a text")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise ResultSetError(
            f"{file}: not a trial as the program records it ({error!r}); remove it to run the trial again"
        ) from None
    return TrialRecord(trial, *tables)


def _turn(record: TrialRecord) -> tuple[bool, int, str]:
    row = record.trial
    return row.get("phase") == "confirm", row.get("trial_number") or 0, row.get("started_at") or ""


class Snapshots:
    """Rebuild a run's tables from its journal repeatedly, reading and converting only what has changed.

    Trials are ordered by turn, and within a turn by method, since it is chance which of them starts first.

    Arguments:
        run_directory: has the journal; the tables are written here.
        methods: names of the methods, in the experiment's order.
    """

    def __init__(self, run_directory: Path, methods: Iterable[str] = ()) -> None:
        self._directory = run_directory
        self._methods = {name: position for position, name in enumerate(methods)}
        self._known: dict[str, _Journaled] = {}  # by trial
        self._changed: set[str] = set()

    def changed(self, trial_id: str) -> None:
        """Note that a trial was journaled again."""
        self._changed.add(trial_id)

    def write(self) -> None:
        """Write the tables; a reader sees the old table or the new one, never half."""
        files = (self._directory / "journal").glob("*.json")
        self._known = {file.stem: self._read(file) for file in files}
        self._changed.clear()
        trials = sorted(self._known.values(), key=lambda one: one.turn)
        for table in (*(name for name in TABLES if name != "trials"), "trials"):  # never ahead of the others
            parts = [one.tables[table] for one in trials if table in one.tables]
            if table == "trials":
                made = _assemble(
                    "trials", [one.trial for one in trials], [one.hyperparameters for one in trials]
                )
            elif parts:
                made = pa.concat_tables(parts).combine_chunks()
            else:
                made = TABLES[table].empty_table()
            file = self._directory / f"{table}.parquet"
            if made.num_rows or table != "predictions" or file.exists():
                sink = pa.BufferOutputStream()
                pq.write_table(made, sink, compression="zstd")
                replace_file(file, sink.getvalue())

    def _read(self, file: Path) -> _Journaled:
        if file.stem in self._known and file.stem not in self._changed:
            return self._known[file.stem]
        record = _parse(file)
        is_confirm, number, started_at = _turn(record)
        position = self._methods.get(str(record.trial.get("method")), len(self._methods))
        return _Journaled(
            turn=(is_confirm, number, position, started_at, file.name),
            trial=_cells("trials", record.trial),
            hyperparameters=_hyperparameters(record.trial),
            tables={
                name: make_table(name, rows)
                for name, rows in record.rows.items()
                if name != "trials" and rows
            },
        )


@dataclass(frozen=True)
class _Journaled:
    """A journal file as read."""

    turn: tuple[bool, int, int, str, str]
    trial: Sequence[Any]  # its row of the trials table, in column order
    hyperparameters: Row
    tables: Mapping[str, pa.Table]  # the other tables, where it has rows


def make_table(table: str, rows: Sequence[Row]) -> pa.Table:
    """Make an Arrow table from rows; ``hp_*`` columns get the narrowest type that holds their values."""
    return _assemble(table, [_cells(table, row) for row in rows], [_hyperparameters(row) for row in rows])


def _assemble(table: str, rows: Sequence[Sequence[Any]], hyperparameters: Sequence[Row]) -> pa.Table:
    schema = TABLES[table]
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    for name in dict.fromkeys(name for row in hyperparameters for name in row):
        values = [row.get(name) for row in hyperparameters]
        field = _hyperparameter_field(name, values)
        schema = schema.append(field)
        arrays.append(pa.array([_cell(value, field.type) for value in values], field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _cells(table: str, row: Row) -> Sequence[Any]:
    return [_cell(row.get(field.name), field.type) for field in TABLES[table]]


def _hyperparameters(row: Row) -> Row:
    return {name: value for name, value in row.items() if name.startswith(HYPERPARAMETER_PREFIX)}


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


def replace_file(path: Path, content: Any) -> None:
    """Replace a file atomically: a reader finds the old content or all of the new.

    Raises:
        OSError: if the file could not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # never through a link that somebody has put there
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a partial file would only fill the disk
        raise
