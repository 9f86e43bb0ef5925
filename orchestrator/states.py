"""When trials save their state, for another worker to go on from, and when it is removed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.result import DONE, SHOULD_CHECKPOINT


class StateKeeper(tune.Callback):
    """Have each trial that goes on save its state after every evaluation; remove it once the trial has ended.

    Arguments:
        max_failures: times a trial is started again; of one that never is, no state is needed.
    """

    def __init__(self, max_failures: int) -> None:
        self._saves = max_failures > 0

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        # Tune reads this after its callbacks, by when the report says whether the trial is to be stopped.
        result[SHOULD_CHECKPOINT] = self._saves and not result[DONE]

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        _remove_states(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        _remove_states(trial)


def _remove_states(trial: Trial) -> None:
    # One whose worker died while it was written is not known to Tune.
    for directory in Path(str(trial.path)).glob("checkpoint_*"):
        shutil.rmtree(directory, ignore_errors=True)
