"""Who is to blame for silence. That a worker that hangs is killed, tests/e2e/test_faults.py shows."""

from __future__ import annotations

import time

import pytest
from ray.tune.experiment import Trial

from orchestrator.watchdog import HELD_UP_SECONDS, Watchdog


def test_time_in_which_the_driver_was_held_up_is_not_the_workers() -> None:
    """Reports of theirs may lie there that it has not heard of."""
    told: list[str] = []
    watchdog, trial = Watchdog(0.2, told.append), Trial("made-up", stub=True)
    watchdog.on_step_begin(0, [trial])
    watchdog.on_trial_start(0, [trial], trial)
    time.sleep(HELD_UP_SECONDS + 0.1)
    watchdog.on_step_begin(1, [trial])
    steps = 0
    with pytest.raises((AttributeError, KeyError)):  # noqa: PT012  # a made-up trial has no worker to kill
        for _ in range(20):
            time.sleep(0.05)
            watchdog.on_step_begin(2, [trial])
            steps += 1
    assert steps >= 2, "it has the whole time once more"
