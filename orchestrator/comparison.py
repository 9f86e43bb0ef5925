"""A comparison, from the first trial to the report; dry runs do not import this module."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import ray
from rich.console import Console

from orchestrator.beginning import Beginning
from orchestrator.cluster import Cluster, connect
from orchestrator.experiment import Experiment
from orchestrator.history import TrialHistory
from orchestrator.loggers import make_loggers
from orchestrator.metrics import TrialMetrics
from orchestrator.mirror import Mirror
from orchestrator.phases import run_phases
from orchestrator.progress import Display, time_spent
from orchestrator.provenance import collect_provenance
from orchestrator.quiet import printer
from orchestrator.recorder import Recorder, Watcher
from orchestrator.study_journal import StudyJournal
from orchestrator.watchdog import Watchdog
from orchestrator.worker import share
from trainables.embedded import cache_directory


def run_comparison(beginning: Beginning, mirror: Mirror | None, console: Console) -> int:
    """Run both phases, print the results, write the report and return the exit status.

    Arguments:
        beginning: what the run starts with; its run directory exists.
        mirror: uploads the run to its URI, if it has one.
        console: is told what the user should see.

    Raises:
        KeyboardInterrupt: if not all trials have ended.
    """
    experiment = beginning.experiment
    say = printer(console)
    say(f"{experiment.name}: results and log.txt in {experiment.location}")
    if mirror:
        mirror.start(say)
    cluster = beginning.cluster or connect(None)
    if cluster.dashboard:
        say(f"Ray dashboard: {cluster.dashboard}")
    if unused := cluster.unused(experiment):
        say(unused)
    started = time.time()
    try:
        trials, is_whole = _train(beginning, cluster, mirror, console, say)
    finally:
        ray.shutdown()
    here, spent = [trial for trial in trials.values() if trial.starts_after(started)], None
    # Nodes of a joined cluster come and go; of a trial that continued, the time spent before is not known.
    if here and not cluster.is_joined and not beginning.earlier.unfinished:
        slots = math.ceil(cluster.slots(experiment) / experiment.resources.pack_size)
        spent = time_spent(here, slots, started, time.time() - started)
    return _show(experiment, is_whole, spent, console, say)


def _train(
    beginning: Beginning,
    cluster: Cluster,
    mirror: Mirror | None,
    console: Console,
    say: Callable[[str], None],
) -> tuple[Mapping[str, TrialHistory], bool]:
    """Run all trials; return their histories by trial id, and whether all have ended."""
    experiment, prepared, earlier = beginning.experiment, beginning.prepared, beginning.earlier
    directory, done = experiment.run_directory, earlier.finished
    concurrent = cluster.limit(experiment)
    with Display(console, experiment, done) as display, TrialMetrics(experiment, done) as metrics:
        provenance = collect_provenance(experiment, prepared)
        watchers: list[Watcher] = [display, metrics, StudyJournal(experiment, directory, done, say)]
        if mirror:
            watchers.append(mirror)
        recorder = Recorder(
            experiment, provenance, directory, watchers, say, earlier, mirror.drop if mirror else None
        )
        watchdog = Watchdog(experiment.resources.trial_timeout, say)
        others = [watchdog, *make_loggers(experiment, directory, say, earlier.unfinished)]
        inputs = share(experiment, prepared, directory)
        try:
            is_whole = run_phases(inputs, recorder, concurrent, others)
        finally:
            recorder.close()
    return recorder.trials, is_whole


def _show(
    experiment: Experiment, is_whole: bool, spent: str | None, console: Console, say: Callable[[str], None]
) -> int:
    """Print the result set and write the report; return the exit status."""
    # Imported here: plots and statistics take a second to import, which would delay the first trial.
    from results import load
    from results.report import write_report
    from results.show import render

    directory = experiment.run_directory
    results = load(directory)
    console.print(render(results))
    if spent:
        say(spent)
    say(f'pandas.read_parquet("{experiment.location}/trials.parquet")')
    if not is_whole:
        raise KeyboardInterrupt
    page = write_report(results, directory / "report", cache_directory())
    say(f"report: {experiment.location}/report/{page.name}")
    return 0 if results.trials.validation_accuracy.notna().any() else 1
