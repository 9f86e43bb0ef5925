"""Per-method ASHA brackets."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray import tune
from ray.tune import Trainable
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.brackets import MethodBrackets, make_bracket
from orchestrator.experiment import Assignment
from orchestrator.phases import TUNE_ENVIRONMENT
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
    starting = {trial: trial.trial_id for trial in live if trial.trial_id in ("6", "5")}
    manager = SimpleNamespace(is_actor_started=lambda worker: worker == "6")  # the other waits for its place
    inside = SimpleNamespace(_trial_to_actor=starting, _actor_manager=manager)
    controller: Any = SimpleNamespace(get_live_trials=lambda: live, _tune_controller=inside)
    chosen = brackets.choose_trial_to_run(controller)
    assert chosen is not None
    assert chosen.trial_id == "5"
    assert brackets.choose_trial_to_run(cast(Any, SimpleNamespace(get_live_trials=set))) is None


class Waiting(SimpleNamespace):
    """A trial as a scheduler sees it, in a set as Tune keeps it."""

    __hash__ = object.__hash__


class Worker(Trainable):
    """A worker process that takes longer to start than many trials take, except for the first one."""

    def setup(self, config: dict[str, Any], started: Path) -> None:  # type: ignore[override]
        is_first = not any(started.iterdir())
        (started / str(os.getpid())).touch()
        time.sleep(0 if is_first else 4)

    def step(self) -> dict[str, Any]:
        time.sleep(0.2)
        return {OBJECTIVE: 0.5, EVALUATION: 1, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True


class Assigner(Searcher):
    """Suggests thirty trials."""

    def __init__(self) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self._number = 0

    def set_search_properties(self, *arguments: Any, **more: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        self._number += 1
        return Assignment("full", self._number, {}).to_config() if self._number <= 30 else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass


@pytest.mark.usefixtures("local_ray")
def test_a_worker_that_is_starting_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many trials end on the warm one meanwhile."""
    # Tune would catch Ctrl-C in this process for the tests that follow, too.
    for name, value in {**TUNE_ENVIRONMENT, "TUNE_DISABLE_SIGINT_HANDLER": "1"}.items():
        monkeypatch.setenv(name, value)
    started = tmp_path / "started"
    started.mkdir()
    results = tune.Tuner(
        tune.with_parameters(Worker, started=started),
        tune_config=tune.TuneConfig(
            search_alg=Assigner(),
            scheduler=make_brackets(),
            num_samples=-1,
            max_concurrent_trials=2,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()
    assert len(results) == 30
    assert len(list(started.iterdir())) == 2
