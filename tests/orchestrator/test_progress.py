"""What the terminal shows, against counts made anew from all trials."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.experiment import Assignment, Experiment
from orchestrator.history import TrialHistory
from orchestrator.progress import Display
from results.evaluation import Evaluation

METHODS = ("head", "full")
TRIALS = 8


def make_experiment(**settings: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "methods": dict.fromkeys(METHODS),
            "search": {"trials": TRIALS},
            "training": {"epochs": 1, "evaluations_per_epoch": 3},
            "confirm": {"seeds": 0},
            **settings,
        }
    )


def make_point(number: int, accuracy: float, is_best: bool) -> Evaluation:
    unused: dict[str, Any] = dict.fromkeys(Evaluation.__dataclass_fields__, 0)
    told = {"evaluation": number, "examples": 10 * number, "validation_accuracy": accuracy}
    return Evaluation(**{**unused, **told, "is_best": is_best, "is_last": number == 3, "test": None})


def shown(display: Display) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(display._view())
    return out.getvalue()


def life(experiment: Experiment, method: str, number: int, dice: random.Random) -> list[TrialHistory]:
    """Return the states a trial goes through."""
    assignment = Assignment(method, number, {"learning_rate": dice.choice([0.1, 0.2, 0.5])})
    states = [TrialHistory(assignment, experiment.trial_spec(assignment))]
    best = 0.0
    for evaluation in range(1, dice.randint(1, 3) + 1):
        accuracy = dice.randint(1, 999) / 1000
        point = make_point(evaluation, accuracy, accuracy > best)
        best = max(best, accuracy)
        states.append(replace(states[-1], curve=(*states[-1].curve, point)))
    status = dice.choice(["completed", "completed", "stopped", "diverged", "failed"])
    return [*states, replace(states[-1], status=status)]


@pytest.mark.parametrize("seed", range(10))
def test_the_table_says_what_a_count_of_all_trials_says(seed: int) -> None:
    """In any order of changes, and with a method's best trial failing in the end."""
    experiment, dice = make_experiment(budget={"examples": 100}), random.Random(seed)
    lives = [life(experiment, method, number, dice) for method in METHODS for number in range(TRIALS)]
    display, now = Display(Console(file=io.StringIO()), experiment), {}
    while any(lives):
        state = dice.choice([states for states in lives if states]).pop(0)
        display.changed(state)
        now[state.spec.trial_id] = state
        lines = {line.split()[0]: line.split() for line in shown(display).splitlines() if line.strip()}
        for method in METHODS:
            trials = [trial for trial in now.values() if trial.spec.method == method]
            failed = [trial for trial in trials if trial.status in ("diverged", "failed")]
            running = [trial for trial in trials if trial.status == "running"]
            counts = [str(len(trials) - len(failed) - len(running))]
            counts += [str(len(group)) for group in (running, failed) if group]
            scored = [trial for trial in trials if trial not in failed and trial.curve]
            best = min((trial.standing for trial in scored), default=None)
            accuracy = [f"{-best[0]:.1%}"] if best else []
            assert lines[method][1 : 1 + len(counts) + len(accuracy)] == counts + accuracy
            spent = sum(trial.curve[-1].examples for trial in trials if trial.curve)
            assert display._done(method) == pytest.approx(TRIALS * min(1.0, spent / 100))


def test_work_done_counts_running_trials_by_their_evaluations() -> None:
    experiment = make_experiment()
    display = Display(Console(file=io.StringIO()), experiment)
    states = life(experiment, "head", 0, random.Random(3))
    for state in states[:-1]:
        display.changed(state)
        assert display._done("head") == pytest.approx(len(state.curve) / 3)
    display.changed(states[-1])
    assert display._done("head") == 1
