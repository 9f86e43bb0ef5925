"""What one more trial costs the driver, and whether that grows with the number of trials.

    python -m benchmarks.scale --trials 100 500 1000 2000

A search as in a real run (studies, brackets, journal, snapshots, live display, Tune), on a cluster of
simulated nodes, with trials that sleep for a second and report three evaluations. Each size has a driver
process of its own, on one cluster. Prints the driver's CPU seconds per trial, early and late in each run.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import ray
from ray import tune
from ray.cluster_utils import Cluster
from rich.console import Console

from benchmarks.sleeper import EVALUATIONS, SECONDS, Sleeper
from orchestrator.experiment import DEFAULT_METHODS, Experiment
from orchestrator.history import TrialHistory
from orchestrator.phases import run_phases
from orchestrator.progress import Display
from orchestrator.recorder import Recorder
from orchestrator.rows import Provenance
from orchestrator.worker import Inputs
from results import load

WINDOW = 0.2
"""Share of a search's trials over which the cost of one trial is averaged, early and late."""


class SleepingInputs(Inputs):
    """Inputs of trials that sleep."""

    @property
    def trainable(self) -> type[tune.Trainable]:
        return Sleeper


class Meter:
    """Pass changes on to the display, and record the driver's CPU seconds as trials end."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self.started = time.monotonic()
        self.ended: list[tuple[float, float]] = [(0.0, cpu_seconds())]

    def changed(self, trial: TrialHistory) -> None:
        self._display.changed(trial)
        if trial.status != "running":
            self.ended.append((time.monotonic() - self.started, cpu_seconds()))


@dataclass(frozen=True)
class Measured:
    """One search's cost to its driver."""

    trials: int
    wall_seconds: float
    cpu_seconds: float
    early_ms: float  # driver CPU per trial over the first window after the slots were filled
    late_ms: float  # over the last window before they empty
    peak_mib: float
    before_mib: float  # of memory, before the search


def cpu_seconds() -> float:
    """Return the CPU seconds this process has used, all its threads included."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mib() -> float:
    """Return this process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(trials: int, slots: int, profile: Path | None) -> Measured:
    """Run one search in this process."""
    with tempfile.TemporaryDirectory() as storage, open(os.devnull, "w") as terminal:
        experiment = Experiment.model_validate(
            {
                "name": f"scale-{trials}",
                "storage": storage,
                "search": {"trials": trials // len(DEFAULT_METHODS), "grace_evaluations": EVALUATIONS},
                "training": {"epochs": 1, "evaluations_per_epoch": EVALUATIONS},
                "confirm": {"seeds": 0},
            }
        )
        directory = experiment.run_directory
        directory.mkdir()
        # Not the way a run joins a cluster: simulated nodes share one copy of its code, and each removes it.
        ray.init(os.environ["RAY_ADDRESS"], logging_level=logging.ERROR)
        nothing = ray.put(None)
        inputs = SleepingInputs(experiment, directory, nothing, nothing, nothing)
        provenance = Provenance("", "none", "", {}, None, {}, ())
        before = peak_mib()
        # As for a person at a terminal: the table costs more than plain lines.
        with Display(Console(file=terminal, force_terminal=True), experiment) as display:
            meter = Meter(display)
            recorder = Recorder(experiment, provenance, directory, [meter], print)
            profiler = cProfile.Profile()
            if profile:
                profiler.enable()
            try:
                is_whole = run_phases(inputs, recorder, slots)
            finally:
                recorder.close()
            wall, cpu = time.monotonic() - meter.started, cpu_seconds() - meter.ended[0][1]
            if profile:
                profiler.disable()
                profiler.dump_stats(profile)
        ray.shutdown()
        assert is_whole
        assert (load(directory).trials.status == "completed").sum() == trials
    cpus = [cpu for _, cpu in meter.ended]
    window = int(WINDOW * trials)
    early, late = slots, trials - slots - window
    return Measured(
        trials=trials,
        wall_seconds=wall,
        cpu_seconds=cpu,
        early_ms=1000 * (cpus[early + window] - cpus[early]) / window,
        late_ms=1000 * (cpus[late + window] - cpus[late]) / window,
        peak_mib=peak_mib(),
        before_mib=before,
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 500, 1000, 2000])
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--slots", type=int, default=1, help="trials at once on each node")
    parser.add_argument("--profile", type=Path, help="write a cProfile of the driver; sizes overwrite it")
    options = parser.parse_args()
    slots = options.nodes * options.slots
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        # A directory of its own, so that no other program joins this cluster.
        os.environ["RAY_TMPDIR"] = temporary
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
        started = time.monotonic()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(options.nodes):
            cluster.add_node(num_cpus=options.slots, num_gpus=options.slots, wait=False)
        cluster.wait_for_nodes()
        print(f"{options.nodes} nodes x {options.slots} slots up in {time.monotonic() - started:.0f} s")
        os.environ["RAY_ADDRESS"] = cluster.address
        print(
            "trials  CPU s  ms/trial  early  late  wall s  beyond ideal ms/trial  MiB before  peak",
            flush=True,
        )
        context = get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as fresh:
            for trials in options.trials:
                found = fresh.submit(measure, trials, slots, options.profile).result()
                beyond = found.wall_seconds - trials * SECONDS / slots
                print(
                    f"{trials:6}  {found.cpu_seconds:5.1f}  {1000 * found.cpu_seconds / trials:8.1f}"
                    f"  {found.early_ms:5.1f}  {found.late_ms:4.1f}  {found.wall_seconds:6.1f}"
                    f"  {1000 * beyond / trials:21.0f}  {found.before_mib:10.0f}  {found.peak_mib:4.0f}",
                    flush=True,
                )
        cluster.shutdown()


if __name__ == "__main__":
    main()
