"""The confirm phase: each method's best configuration on fresh seeds, judged on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ray import tune

from orchestrator.experiment import Assignment
from orchestrator.phase import run_phase
from orchestrator.recorder import Recorder
from orchestrator.reports import ASSIGNMENT
from orchestrator.rows import TrialHistory
from orchestrator.worker import Inputs


def confirm_trials(trials: list[TrialHistory], methods: list[str], seeds: int) -> list[Assignment]:
    """Say which trials confirm a search: methods take turns, and share their seeds.

    Arguments:
        trials: the search's.
        methods: in the order of turns. One of which no trial ended well has nothing to confirm.
        seeds: trials per method.
    """
    best = {}
    for method in methods:
        ended = [trial for trial in trials if trial.spec.method == method and trial.objective is not None]
        if ended:
            best[method] = min(ended, key=lambda trial: trial.rank)
    return [
        Assignment(method, seed, winner.assignment.hyperparameters, "confirm")
        for seed in range(seeds)
        for method, winner in best.items()
    ]


def confirm(
    inputs: Inputs, recorder: Recorder, concurrent: int | None, loggers: Sequence[tune.Callback] = ()
) -> bool:
    """Run the confirm phase; what the recorder has is not run again. Say whether it came to its end.

    Trials that confirm what is not the best any more, as it may be after the search has grown, are forgotten.
    """
    experiment = inputs.experiment
    planned = confirm_trials(recorder.of_phase("search"), list(experiment.methods), experiment.confirm.seeds)
    begun = [*recorder.of_phase("confirm"), *recorder.unfinished("confirm")]
    recorder.forget([trial for trial in begun if trial.assignment not in planned])
    done = {trial.spec.trial_id for trial in recorder.of_phase("confirm")}
    missing = [asdict(trial) for trial in planned if trial.trial_id not in done]
    if missing:
        run_phase(
            "confirm",
            inputs,
            recorder,
            tune.TuneConfig(max_concurrent_trials=concurrent),
            param_space={ASSIGNMENT: tune.grid_search(missing)},
            loggers=loggers,
        )
    ended = [trial for trial in recorder.of_phase("confirm") if trial.status != "running"]
    return len(ended) == len(planned)
