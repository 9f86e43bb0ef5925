"""Ends workers that no longer report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from orchestrator.assignment import Assignment

HELD_UP_SECONDS = 1.0
"""A step of Tune that takes longer was held up; an idle one takes a tenth of a second."""


class Watchdog(tune.Callback):
    """Kill the worker of a trial that reports nothing for too long; Tune then has another one continue it.

    Arguments:
        timeout: most seconds from one report to the next; None waits forever.
        say: is told of each worker killed.
    """

    def __init__(self, timeout: float | None, say: Callable[[str], None]) -> None:
        self._timeout = timeout
        self._say = say
        self._heard_at: dict[Trial, float] = {}  # of running trials
        self._stepped_at = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Keep out of Tune's state files: a run is continued from its journal."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._timeout is None:
            return
        now = time.monotonic()
        held_up, self._stepped_at = now - self._stepped_at, now
        if held_up > HELD_UP_SECONDS:  # and took no reports, as while the run waits for a full disk
            self._heard_at = {trial: heard + held_up for trial, heard in self._heard_at.items()}
        for trial in [one for one, heard in self._heard_at.items() if now - heard > self._timeout]:
            del self._heard_at[trial]
            name = Assignment.from_config(trial.config).trial_id
            self._say(f"{name}: no report for {self._timeout:g} s (resources.trial_timeout)")
            worker = trial.temporary_state.ray_actor
            assert worker is not None, "it has started"
            ray.kill(worker)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._heard_at[trial] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._heard_at[trial] = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._heard_at.pop(trial, None)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._heard_at.pop(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._heard_at.pop(trial, None)
