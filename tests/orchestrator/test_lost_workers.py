"""A worker that is lost between two trials costs the next one a try."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import Trainable
from ray.tune.search import Searcher

from orchestrator.experiment import Assignment
from orchestrator.lost_workers import count_lost_workers
from orchestrator.phases import TUNE_ENVIRONMENT
from orchestrator.reports import EVALUATION, OBJECTIVE

IDLE_SECONDS = 3.0
"""How long the second trial is not suggested after the first has ended."""


class Worker(Trainable):
    """A worker whose first process dies while it waits for its second trial."""

    def setup(self, config: dict[str, Any], died: Path) -> None:  # type: ignore[override]
        self._died = died

    def step(self) -> dict[str, Any]:
        if not self._died.exists():
            self._died.touch()
            threading.Timer(IDLE_SECONDS / 3, os._exit, [1]).start()
        return {OBJECTIVE: 0.5, EVALUATION: 1, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True


class Two(Searcher):
    """Suggests a trial, and some time after it has ended another one."""

    def __init__(self) -> None:
        super().__init__(metric=OBJECTIVE, mode="max")
        self._suggested = 0
        self._ended_at = 0.0

    def set_search_properties(self, *arguments: Any, **more: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        if self._suggested == 2:
            return Searcher.FINISHED
        if self._suggested and not (self._ended_at and time.monotonic() - self._ended_at > IDLE_SECONDS):
            return None
        self._suggested += 1
        return Assignment("full", self._suggested, {}).to_config()

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self._ended_at = time.monotonic()


@pytest.mark.usefixtures("local_ray")
def test_a_warm_worker_that_dies_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tune would catch Ctrl-C in this process for the tests that follow, too.
    for name, value in {**TUNE_ENVIRONMENT, "TUNE_DISABLE_SIGINT_HANDLER": "1"}.items():
        monkeypatch.setenv(name, value)
    count_lost_workers()
    results = tune.Tuner(
        tune.with_parameters(Worker, died=tmp_path / "died"),
        tune_config=tune.TuneConfig(
            search_alg=Two(), num_samples=-1, max_concurrent_trials=1, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()
    assert (tmp_path / "died").exists()
    assert [result.error for result in results] == [None, None]
