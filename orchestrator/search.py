"""What the search phase is made of: every method's study and bracket, under equal budgets."""

from __future__ import annotations

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.brackets import MethodBrackets, make_bracket
from orchestrator.budget import Purse
from orchestrator.experiment import Experiment, derive_seed
from orchestrator.studies import MethodStudies, make_sampler, make_study


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
