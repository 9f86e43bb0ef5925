"""A run's Prometheus metrics. The Ray agent on each node serves them, with ``ray_`` before their names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from ray.util.metrics import Gauge

from orchestrator.experiment import Experiment
from orchestrator.history import TrialHistory
from orchestrator.tally import Tally
from results.evaluation import Evaluation

TRIALS: Final = "finetune_trials"
TRIALS_DESCRIPTION: Final = "Trials of an experiment by status."
TRIAL_TAGS: Final = ("experiment", "method", "trial", "phase")
TRIALS_TAGS: Final = ("experiment", "method", "phase", "status")

PER_TRIAL: Final[Mapping[str, tuple[str, Callable[[Evaluation], float | None]]]] = {
    "finetune_validation_accuracy": (
        "Share of validation examples a trial labelled right, 0 to 1.",
        lambda point: point.validation_accuracy,
    ),
    "finetune_validation_loss": (
        "Mean cross-entropy of a trial on validation, in nats.",
        lambda point: point.validation_loss,
    ),
    "finetune_train_loss": (
        "Mean cross-entropy of a trial in training, in nats.",
        lambda point: point.train_loss,
    ),
    "finetune_examples_per_second": (
        "Training examples of a trial per second of training.",
        lambda point: point.examples_per_second,
    ),
    "finetune_peak_memory_bytes": (
        "Most memory held at once during a trial.",
        lambda point: point.peak_memory_bytes,
    ),
}
"""The metrics of a running trial: a description, and how to get the number from its last evaluation."""

REFRESH_SECONDS = 5.0
"""Values are set again this often: Ray exports them every 10 s, and then forgets them."""


class TrialMetrics:
    """Export the last evaluation of every running trial, and how many trials have each status.

    A value that is not set again disappears from Ray's export within half a minute. That happens to those of
    ended trials, so that thousands of them cost nothing; Prometheus keeps their series.

    Arguments:
        experiment: what runs.
        finished: trials that an earlier process finished.
    """

    def __init__(self, experiment: Experiment, finished: Iterable[TrialHistory] = ()) -> None:
        self._experiment = experiment.name
        self._gauges = {
            name: Gauge(name, description, TRIAL_TAGS) for name, (description, _) in PER_TRIAL.items()
        }
        self._trials = Gauge(TRIALS, TRIALS_DESCRIPTION, TRIALS_TAGS)
        self._tally = Tally(finished)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="metrics", daemon=True)

    def __enter__(self) -> TrialMetrics:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def changed(self, trial: TrialHistory) -> None:
        """Record a trial's newest state."""
        self._tally.note(trial)
        self._export(trial)

    def _export(self, trial: TrialHistory) -> None:
        if not trial.curve:
            return
        tags = {
            "experiment": self._experiment,
            "method": trial.spec.method,
            "trial": trial.spec.trial_id,
            "phase": trial.assignment.phase,
        }
        for name, (_, value_of) in PER_TRIAL.items():
            value = value_of(trial.curve[-1])
            if value is not None:
                self._gauges[name].set(value, tags)

    def _refresh(self) -> None:
        while not self._stop.wait(REFRESH_SECONDS):
            for trial in list(self._tally.running.values()):
                self._export(trial)
            for (method, phase), statuses in list(self._tally.statuses.items()):
                of_both = {"experiment": self._experiment, "method": method, "phase": phase}
                for status, count in list(statuses.items()):
                    self._trials.set(count, {**of_both, "status": status})
