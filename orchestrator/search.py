"""The search phase: one Ray Tune experiment over all methods."""

from __future__ import annotations

import os
from pathlib import Path

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.brackets import MethodBrackets, make_bracket
from orchestrator.experiment import Experiment, derive_seed
from orchestrator.prepare import Prepared
from orchestrator.recorder import Recorder, assignment_of
from orchestrator.studies import MethodStudies, make_sampler, make_study
from orchestrator.worker import TrialWorker

TUNE_ENVIRONMENT = {
    # Ours are the only loggers and the only reports; the metric is absent from the result of a failed trial.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def make_studies(experiment: Experiment) -> MethodStudies:
    """Make every method's study from the experiment's seed."""
    trials = experiment.search.trials
    return MethodStudies(
        {
            method: make_study(
                experiment.space(method),
                experiment.first_trial(method),
                make_sampler(
                    experiment.search.sampler, derive_seed(experiment.seed, "study", method) % 2**32, trials
                ),
            )
            for method in experiment.methods
        },
        trials,
    )


def make_scheduler(experiment: Experiment) -> TrialScheduler:
    """Make every method's brackets, or a scheduler that stops nothing."""
    if experiment.search.early_stopping == "none":
        return FIFOScheduler()
    return MethodBrackets(
        {
            method: make_bracket(
                experiment.most_evaluations(method),
                experiment.search.grace_evaluations,
                experiment.search.reduction_factor,
            )
            for method in experiment.methods
        }
    )


def search(
    experiment: Experiment, prepared: Prepared, directory: Path, recorder: Recorder, concurrent: int
) -> None:
    """Run the search phase to its end or until it is interrupted.

    Arguments:
        experiment: what to search.
        prepared: tokenized data and base weights; they go to the object store once.
        directory: the run directory; Tune's own files go to ``ray/`` in it.
        recorder: journals what trials report. What it has already is not run again: the studies and
            brackets are told.
        concurrent: most trials at once. Suggestions wait for a free slot, so that with one slot each
            study has seen all its earlier results, and the run is deterministic.
    """
    os.environ.update(TUNE_ENVIRONMENT)
    finished = list(recorder.trials.values())
    missing = experiment.search.trials * len(experiment.methods) - len(finished)
    if not missing:
        return
    studies, scheduler = make_studies(experiment), make_scheduler(experiment)
    studies.replay((trial.assignment, trial.objective) for trial in finished)
    if isinstance(scheduler, MethodBrackets):
        for trial in finished:
            scheduler.replay(trial.spec.method, trial.spec.trial_id, trial.best_so_far)
    resources = experiment.resources
    trainable = tune.with_resources(
        tune.with_parameters(TrialWorker, experiment=experiment, prepared=prepared, directory=directory),
        {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial},
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=studies,
            scheduler=scheduler,
            num_samples=missing,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(directory / "ray"),
            callbacks=[recorder],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()


def _trial_name(trial: tune.experiment.Trial) -> str:
    return assignment_of(trial).trial_id
