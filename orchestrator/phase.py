"""What the phases have in common: one Ray Tune experiment over warm workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ray import tune

from orchestrator.lost_workers import count_lost_workers
from orchestrator.ranks import MultiProcessTrialWorker, placement
from orchestrator.recorder import Recorder, assignment_of
from orchestrator.worker import Inputs

TUNE_ENVIRONMENT = {
    # Ours are the only loggers and the only reports; the metric is absent from the result of a failed trial.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "600",
    # A run is continued from its journal alone; Tune would write its own state anew every ten seconds.
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run_phase(
    name: str,
    inputs: Inputs,
    recorder: Recorder,
    tune_config: tune.TuneConfig,
    param_space: dict[str, Any] | None = None,
    loggers: Sequence[tune.Callback] = (),
) -> None:
    """Run the trials of a phase to their end, or until they are interrupted.

    Arguments:
        name: of the phase; Tune's own files go to ``ray/NAME`` in the run directory.
        inputs: what trials read.
        recorder: journals what they report.
        tune_config: which trials, how many at once, and what stops them.
        param_space: their configurations, where no searcher makes them.
        loggers: are told of trials besides the recorder.
    """
    os.environ.update(TUNE_ENVIRONMENT)
    count_lost_workers()
    resources = inputs.experiment.resources
    worker = inputs.trainable
    if resources.workers_per_trial > 1:
        worker = tune.with_parameters(MultiProcessTrialWorker, inputs=inputs)
    trainable = tune.with_resources(worker, placement(resources))
    tuner = tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=replace(
            tune_config,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(inputs.directory / "ray"),
            callbacks=[recorder, *loggers],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # workers save states
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
            verbose=0,
        ),
    )
    tuner.fit()


def _trial_name(trial: tune.experiment.Trial) -> str:
    return assignment_of(trial).trial_id
