"""``python -m results.dictionary``: print ``docs/result-set.md``, which lists every column of every table."""

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
"""Units by the last word of a column's name."""

MEANINGS = {
    "trials": "One row per trial, however it ended. Columns `hp_<name>` follow, one per hyperparameter "
    "of any trial, null for methods without it.",
    "metrics": "One row per evaluation of each trial: the trial's curve.",
    "checkpoints": "One row per checkpoint still on disk.",
    "predictions": "One row per test example and trial of the confirm phase.",
}

INTRODUCTION = f"""\
# The result set

Generated from `results/schema.py` by `python -m results.dictionary > docs/result-set.md`.

A run directory holds Parquet tables. Each is replaced as a whole, so they can be read at any time during a
run. A missing value is null, never a number that stands for it. The file's metadata has `schema_version`, now
{SCHEMA_VERSION}: `results.load` fills columns that an older version did not write with nulls, and refuses
files of a newer version. [The cookbook](cookbook.md) has queries.

Other people's result sets are safe to load, show and report: only Parquet and JSON are read, anything that
does not match the tables below is refused, and text is shown as text. `ray/` beside the tables holds Ray's
own state files, which are pickles: they run code when opened. The program never opens those of an earlier
run; do not open them with other tools unless the run is your own.
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
