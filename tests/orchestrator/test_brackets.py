"""Per-method ASHA brackets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from orchestrator.brackets import MethodBrackets, make_bracket
from orchestrator.experiment import Assignment
from orchestrator.reports import EVALUATION, OBJECTIVE

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


def drive(brackets: MethodBrackets, method: str, number: int, curve: tuple[float, ...], done: int = 0) -> int:
    """Report a curve until the trial is stopped, and return the evaluations it made.

    Arguments:
        brackets: what judges it.
        method: the trial's.
        number: the trial's.
        curve: objectives by evaluation.
        done: evaluations that an earlier process has reported.
    """
    config = Assignment(method, number, {}).to_config()
    tune_id = f"{method}{number}{done}"  # another one after each interruption
    trial = cast(Trial, SimpleNamespace(trial_id=tune_id, config=config))
    brackets.on_trial_add(CONTROLLER, trial)
    for evaluation, objective in enumerate(curve[done:], start=done + 1):
        result = {EVALUATION: evaluation, OBJECTIVE: objective}
        if brackets.on_trial_result(CONTROLLER, trial, result) == TrialScheduler.STOP:
            break
    brackets.on_trial_complete(CONTROLLER, trial, result)
    return evaluation


def test_a_bad_trial_stops_after_the_grace() -> None:
    brackets = make_brackets()
    assert [drive(brackets, "full", i, GOOD) for i in range(3)] == [len(GOOD)] * 3
    assert drive(brackets, "full", 9, BAD) == 2


def test_the_trials_of_another_method_do_not_stop_one() -> None:
    brackets = make_brackets()
    for i in range(3):
        drive(brackets, "full", i, GOOD)
    assert drive(brackets, "lora", 9, BAD) == len(BAD)


def test_a_run_that_is_continued_stops_what_it_would_have_stopped() -> None:
    brackets = make_brackets()
    for i in range(3):
        brackets.replay("full", f"full-{i:03d}", GOOD)
    assert drive(brackets, "full", 9, BAD) == 2
    assert drive(brackets, "lora", 9, BAD) == len(BAD)


@pytest.mark.parametrize("done", [1, 2, 3, 5])
def test_a_trial_that_goes_on_counts_once_on_each_rung(done: int) -> None:
    whole, cut = make_brackets(), make_brackets()
    drive(whole, "full", 0, GOOD)
    cut.replay("full", "full-000", GOOD[:done])
    drive(cut, "full", 0, GOOD, done)
    assert cut.debug_string() == whole.debug_string()


def test_a_trial_that_was_to_be_stopped_when_its_worker_died_is_stopped_when_it_is_back() -> None:
    brackets = make_brackets()
    for i in range(3):
        drive(brackets, "full", i, GOOD)
    config = Assignment("full", 3, {}).to_config()
    trial = cast(Trial, SimpleNamespace(trial_id="t", config=config))
    brackets.on_trial_add(CONTROLLER, trial)
    for _ in range(2):
        result = {EVALUATION: 2, OBJECTIVE: 0.5}
        assert brackets.on_trial_result(CONTROLLER, trial, result) == TrialScheduler.STOP


def test_a_tie_is_not_stopped() -> None:
    brackets = make_brackets()
    assert [drive(brackets, "full", i, GOOD) for i in range(5)] == [len(GOOD)] * 5


def test_waiting_trials_start_in_the_order_suggested() -> None:
    brackets, live = make_brackets(), set()
    for i in range(9):
        config = Assignment("full", i, {}).to_config()
        status = Trial.RUNNING if i < 3 else Trial.PENDING
        trial = cast(Trial, Waiting(trial_id=f"{9 - i}", config=config, status=status))
        brackets.on_trial_add(CONTROLLER, trial)
        live.add(trial)
    controller: Any = SimpleNamespace(get_live_trials=lambda: live)
    chosen = brackets.choose_trial_to_run(controller)
    assert chosen is not None
    assert chosen.trial_id == "6"
    assert brackets.choose_trial_to_run(cast(Any, SimpleNamespace(get_live_trials=set))) is None


class Waiting(SimpleNamespace):
    """A trial as a scheduler sees it, in a set as Tune keeps it."""

    __hash__ = object.__hash__
