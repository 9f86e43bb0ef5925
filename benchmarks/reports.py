"""What one more report costs the driver: journal, searcher, brackets, display, Tune itself.

    python -m benchmarks.reports

Two slots, five methods, trials of 50 evaluations that take no time, against as many trials of 3: the
difference is what reports cost. The driver's time is its CPU seconds, all threads included, and the seconds
it waits for the disk when it journals.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import ray
from ray import tune
from rich.console import Console

from benchmarks.machine import machine
from benchmarks.scale import SleepingInputs, cpu_seconds
from benchmarks.sleeper import Long, Short
from orchestrator.cluster import connect
from orchestrator.experiment import DEFAULT_METHODS, Experiment
from orchestrator.phases import run_phases
from orchestrator.progress import Display
from orchestrator.recorder import Recorder
from orchestrator.rows import Provenance
from results import load

SLOTS = 2


class LongInputs(SleepingInputs):
    """Inputs of trials that report often."""

    @property
    def trainable(self) -> type[tune.Trainable]:
        return Long


class ShortInputs(SleepingInputs):
    """Inputs of trials that report rarely."""

    @property
    def trainable(self) -> type[tune.Trainable]:
        return Short


@dataclass(frozen=True)
class Cost:
    """What a search cost its driver."""

    reports: int
    cpu_seconds: float
    waited_seconds: float  # for the disk


def measure(trials: int, evaluations: int) -> Cost:
    """Run one search in this process."""
    waited = 0.0
    sync = os.fsync

    def timed_sync(file: int) -> None:
        nonlocal waited
        started, cpu = time.perf_counter(), time.thread_time()
        sync(file)
        waited += time.perf_counter() - started - (time.thread_time() - cpu)

    os.fsync = timed_sync
    with tempfile.TemporaryDirectory() as storage, open(os.devnull, "w") as terminal:
        experiment = Experiment.model_validate(
            {
                "name": "reports",
                "storage": storage,
                "search": {"trials": trials // len(DEFAULT_METHODS), "grace_evaluations": evaluations},
                "training": {"epochs": 1, "evaluations_per_epoch": evaluations},
                "confirm": {"seeds": 0},
            }
        )
        directory = experiment.run_directory
        directory.mkdir()
        connect(None)
        kind = LongInputs if evaluations == Long.evaluations else ShortInputs
        nothing = ray.put(None)
        inputs = kind(experiment, directory, nothing, nothing, nothing)
        provenance = Provenance("", "none", "", {}, None, {}, ())
        # As for a person at a terminal: the table costs more than plain lines.
        with Display(Console(file=terminal, force_terminal=True), experiment) as display:
            recorder = Recorder(experiment, provenance, directory, [display], print)
            before = cpu_seconds()
            assert run_phases(inputs, recorder, SLOTS)
            cpu = cpu_seconds() - before
            recorder.close()
        ray.shutdown()
        metrics = load(directory).metrics
    return Cost(len(metrics), cpu, waited)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Markdown file; without it the table is printed only")
    options = parser.parse_args()
    context = get_context("spawn")
    found = []
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as fresh:
        for _ in range(options.pairs):
            short, long = (
                fresh.submit(measure, options.trials, kind.evaluations).result() for kind in (Short, Long)
            )
            more = long.reports - short.reports
            found.append(
                [
                    1000 * (long.cpu_seconds - short.cpu_seconds) / more,
                    1000 * (long.waited_seconds - short.waited_seconds) / more,
                    1000 * (long.cpu_seconds + long.waited_seconds) / long.reports,
                ]
            )
    text = report(found, options.trials)
    print(text)
    if options.out:
        options.out.write_text(text)


def report(found: list[list[float]], trials: int) -> str:
    """Write the results as Markdown."""
    names = (
        "CPU, all threads, of one more report",
        "waiting for the disk, of one more report",
        "both, over all reports, the trials' starts and ends included",
    )
    lines = [
        "# What a report costs the driver",
        "",
        f"{machine()}: `python -m benchmarks.reports`. {trials} trials of {Long.evaluations} evaluations"
        f" that take no time against as many of {Short.evaluations}, on two slots, {len(found)} times; five"
        " methods, TPE, the live table as at a terminal.",
        "",
        "| driver's time | ms, median (least to most) |",
        "|---|---|",
        *(
            f"| {name} | {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) |"
            for name, times in zip(names, zip(*found, strict=True), strict=True)
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
