"""The search phase: every method's study and bracket, under equal budgets."""

from __future__ import annotations

from collections.abc import Sequence

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.brackets import MethodBrackets, make_bracket
from orchestrator.budget import Purse
from orchestrator.experiment import Experiment, derive_seed
from orchestrator.limiter import RoomLimiter
from orchestrator.phase import run_phase
from orchestrator.recorder import Recorder
from orchestrator.studies import MethodStudies, make_sampler, make_study
from orchestrator.worker import Inputs


def make_studies(experiment: Experiment, purse: Purse | None) -> MethodStudies:
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
        purse,
    )


def make_brackets(experiment: Experiment, purse: Purse | None) -> MethodBrackets:
    """Make every method's bracket: ASHA, or one that stops nothing."""
    search = experiment.search
    brackets: dict[str, TrialScheduler] = {
        method: make_bracket(
            experiment.most_evaluations(method), search.grace_evaluations, search.reduction_factor
        )
        if search.early_stopping == "asha"
        else FIFOScheduler()
        for method in experiment.methods
    }
    return MethodBrackets(brackets, purse)


def search(
    inputs: Inputs, recorder: Recorder, concurrent: int | None, loggers: Sequence[tune.Callback] = ()
) -> bool:
    """Run the search phase, and say whether it came to its end.

    Arguments:
        inputs: what trials read.
        recorder: journals what trials report. What has ended already is not run again, what had begun goes
            on: studies, brackets and purses are told.
        concurrent: most trials at once; None is what the cluster has room for. Suggestions wait for a free
            slot, so that with one slot each study has seen all its earlier results, and the run is
            deterministic.
        loggers: are told of trials besides the recorder.
    """
    experiment = inputs.experiment
    finished = recorder.of_phase("search")
    purse = Purse(experiment.budget) if experiment.budget.unit else None
    studies, brackets = make_studies(experiment, purse), make_brackets(experiment, purse)
    unfinished = recorder.unfinished("search")
    studies.replay(
        ((trial.assignment, trial.objective) for trial in finished),
        [trial.assignment for trial in unfinished],
    )
    for trial in [*finished, *unfinished]:
        brackets.replay(trial.spec.method, trial.spec.trial_id, trial.best_so_far)
        if purse:
            purse.replay(trial)
    if not studies.is_done:
        run_phase(
            "search",
            inputs,
            recorder,
            tune.TuneConfig(
                search_alg=studies if concurrent else RoomLimiter(studies, experiment.resources),
                scheduler=brackets,
                num_samples=-1,  # until the studies say that they are finished
                max_concurrent_trials=concurrent,
            ),
            loggers=loggers,
        )
    return studies.is_done
