"""Per-method ASHA brackets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from orchestrator.brackets import MethodBrackets, make_bracket
from orchestrator.reports import ASSIGNMENT, EVALUATION, OBJECTIVE

CONTROLLER: Any = None
GOOD = (0.5, 0.7, 0.8, 0.85, 0.9, 0.91)
BAD = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)


def make_brackets() -> MethodBrackets:
    return MethodBrackets(
        {
            method: make_bracket(evaluations=len(GOOD), grace=2, reduction_factor=3)
            for method in ("full", "lora")
        }
    )


def drive(brackets: MethodBrackets, method: str, trial_id: str, curve: tuple[float, ...]) -> int:
    """Report a curve until the trial is stopped, and return the evaluations it made."""
    trial = cast(Trial, SimpleNamespace(trial_id=trial_id, config={ASSIGNMENT: {"method": method}}))
    brackets.on_trial_add(CONTROLLER, trial)
    for evaluation, objective in enumerate(curve, start=1):
        result = {EVALUATION: evaluation, OBJECTIVE: objective}
        if brackets.on_trial_result(CONTROLLER, trial, result) == TrialScheduler.STOP:
            break
    brackets.on_trial_complete(CONTROLLER, trial, result)
    return evaluation


def test_a_bad_trial_stops_after_the_grace() -> None:
    brackets = make_brackets()
    assert [drive(brackets, "full", f"good{i}", GOOD) for i in range(3)] == [len(GOOD)] * 3
    assert drive(brackets, "full", "bad", BAD) == 2


def test_the_trials_of_another_method_do_not_stop_one() -> None:
    brackets = make_brackets()
    for i in range(3):
        drive(brackets, "full", f"good{i}", GOOD)
    assert drive(brackets, "lora", "bad", BAD) == len(BAD)


def test_a_run_that_is_continued_stops_what_it_would_have_stopped() -> None:
    brackets = make_brackets()
    for i in range(3):
        brackets.replay("full", f"good{i}", GOOD)
    assert drive(brackets, "full", "bad", BAD) == 2
    assert drive(brackets, "lora", "bad", BAD) == len(BAD)


def test_a_tie_is_not_stopped() -> None:
    brackets = make_brackets()
    assert [drive(brackets, "full", f"same{i}", GOOD) for i in range(5)] == [len(GOOD)] * 5
