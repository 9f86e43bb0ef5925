"""The search phase: one Ray Tune experiment over all methods."""

from __future__ import annotations

import os
from pathlib import Path

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.brackets import MethodBrackets, make_bracket
from orchestrator.experiment import Experiment, derive_seed
from orchestrator.prepare import Prepared
from orchestrator.recorder import Recorder
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


def slots(experiment: Experiment, cpus: float, gpus: float) -> int:
    """Say how many trials run at once on so many CPUs and GPUs."""
    resources = experiment.resources
    fits = [int(cpus // resources.cpus_per_trial)]
    if resources.gpus_per_trial:
        fits.append(int(gpus / resources.gpus_per_trial + 1e-9))
    if resources.max_concurrent is not None:
        fits.append(resources.max_concurrent)
    return max(1, min(fits))


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
        recorder: journals what trials report.
        concurrent: most trials at once. Suggestions wait for a free slot, so that with one slot each
            study has seen all its earlier results, and the run is deterministic.
    """
    os.environ.update(TUNE_ENVIRONMENT)
    resources = experiment.resources
    trainable = tune.with_resources(
        tune.with_parameters(TrialWorker, experiment=experiment, prepared=prepared, directory=directory),
        {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial},
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=make_studies(experiment),
            scheduler=make_scheduler(experiment),
            num_samples=experiment.search.trials * len(experiment.methods),
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
    return f"{trial.config['method']}-{trial.config['number']:03d}"
