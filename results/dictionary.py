"""``python -m results.dictionary``: every column of every table, as ``docs/result-set.md`` lists them."""

from __future__ import annotations

import pyarrow as pa

from results.schema import SCHEMA_VERSION, TABLES

UNITS = {
    "seconds": "s",
    "bytes": "bytes",
    "second": "1/s",
    "loss": "nats",
    "accuracy": "0 to 1",
    "f1": "0 to 1",
}
"""By the last word of a column's name."""

MEANINGS = {
    "trials": "One row per trial, whatever became of it. Columns `hp_<name>` follow, one per hyperparameter "
    "that any trial has, null for methods that have none of that name.",
    "metrics": "One row per evaluation of each trial: its curve.",
    "checkpoints": "One row per checkpoint that is still on disk.",
    "predictions": "One row per test example and trial of the confirm phase.",
}

INTRODUCTION = f"""\
# The result set

Made from `results/schema.py` by `python -m results.dictionary > docs/result-set.md`.

A run directory holds Parquet tables, each replaced as a whole, so that they can be read at any moment of a
run. A value that is missing is null, never a number that stands for it. The file's metadata has
`schema_version`, now {SCHEMA_VERSION}: `results.load` fills columns that an older version did not write
with nulls, and refuses what a newer version wrote. [The cookbook](cookbook.md) has queries.

Result sets that somebody sent are safe to load, show and report: Parquet and JSON is all that is read, what
is not as below is refused, and text is shown as text. `ray/` beside the tables has Ray's own state files,
which are pickles: they run code when they are opened. The program never opens those of an earlier run; do
not open them with other tools unless the run is your own.
"""


def dictionary() -> str:
    """Write the page."""
    return "\n".join([INTRODUCTION, *(_table(name, schema) for name, schema in TABLES.items())])


def _table(name: str, schema: pa.Schema) -> str:
    rows = [f"| `{field.name}` | {field.type} | {_unit(field)} | {_meaning(field)} |" for field in schema]
    return "\n".join(
        [
            f"## {name}.parquet\n",
            f"{MEANINGS[name]}\n",
            "| column | type | unit | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _unit(field: pa.Field) -> str:
    if pa.types.is_timestamp(field.type):
        return "UTC"
    return UNITS.get(field.name.split("_")[-1], "")


def _meaning(field: pa.Field) -> str:
    return (field.metadata or {})[b"description"].decode().replace("|", "\\|")


if __name__ == "__main__":
    print(dictionary(), end="")
