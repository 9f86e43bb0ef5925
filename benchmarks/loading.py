"""How long a large result set takes to load, and how much memory.

    python -m benchmarks.loading

Writes a run directory of 10,000 trials with 1,000,000 evaluations, then loads it in fresh processes, so that
only the disk cache is warm, and prints the seconds of ``results.load``, its imports included, and the peak
memory of the process.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from results.schema import METRICS, TABLES, TRIALS

METHODS = ("head", "full", "lora", "dora", "qlora")

LOAD = """
import resource, sys, time
started = time.perf_counter()
import results
found = results.load(sys.argv[1])
seconds = time.perf_counter() - started
assert len(found.trials) == int(sys.argv[2]) and len(found.metrics) == int(sys.argv[3])
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def fill(schema: pa.Schema, rows: int, columns: Mapping[str, Any]) -> pa.Table:
    """Make a table of the given columns, with plausible values in all others."""
    generator = np.random.default_rng(0)
    values = {
        pa.string(): lambda: pa.array(["some text, as long as most are"] * rows),
        pa.int64(): lambda: pa.array(generator.integers(0, 10**9, rows)),
        pa.float64(): lambda: pa.array(generator.random(rows)),
    }
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else values.get(field.type, lambda kind=field.type: pa.nulls(rows, kind))()
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def write_run(directory: Path, trials: int, evaluations: int) -> None:
    """Write a run directory of ``trials`` trials with ``evaluations`` evaluations each."""
    methods = [METHODS[number % len(METHODS)] for number in range(trials)]
    ids = [f"{method}-{number // len(METHODS):05d}" for number, method in enumerate(methods)]
    identity = {
        "experiment": ["large"] * trials,
        "trial_id": ids,
        "method": methods,
        "phase": ["search"] * trials,
    }
    rates = pa.array(np.random.default_rng(1).random(trials))
    settings = [
        f'{{"number": {number}, "experiment": "{"as long as most are, " * 100}"}}' for number in range(trials)
    ]
    rows = fill(TRIALS, trials, {**identity, "settings": settings}).append_column("hp_learning_rate", rates)
    pq.write_table(rows, directory / "trials.parquet", compression="zstd")
    each = {
        name: [value for value in values for _ in range(evaluations)] for name, values in identity.items()
    }
    numbers = np.tile(np.arange(1, evaluations + 1), trials)
    curves = fill(METRICS, trials * evaluations, {**each, "evaluation": numbers})
    pq.write_table(curves, directory / "metrics.parquet", compression="zstd")
    pq.write_table(TABLES["checkpoints"].empty_table(), directory / "checkpoints.parquet")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--evaluations", type=int, default=100, help="per trial")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_run(Path(name), options.trials, options.evaluations)
        size = sum(file.stat().st_size for file in Path(name).iterdir())
        rows = options.trials * options.evaluations
        print(f"{options.trials:,} trials, {rows:,} evaluations, {size / 1e6:.0f} MB on disk")
        command = [sys.executable, "-c", LOAD, name, str(options.trials), str(rows)]
        outputs = [
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            for _ in range(options.rounds + 1)
        ][1:]  # the first round warms the disk cache
    seconds, peaks = ([float(value) for value in column] for column in zip(*outputs, strict=True))
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"load: {median(seconds):.2f} s (median of {options.rounds}; {spread})")
    print(f"peak memory: {max(peaks) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
