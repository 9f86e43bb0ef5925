"""However a worker is lost, it costs its trial a try, and never the experiment.

Ray Tune 2.60 knows two kinds of worker errors: those that the worker's code raised, and ``RayActorError``. A
worker that Ray's memory monitor killed raises neither: Tune then ends the whole experiment or, if the worker
was still starting, fails its trial with pages of advice. No setting changes that.
"""

from __future__ import annotations

import time
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

OUT_OF_MEMORY = "ran out of memory"
"""Text in the error of a worker that Ray killed because its machine ran out of memory."""

START_AGAIN_SECONDS = 2.0
"""Pause before the next try if a worker was lost while it started: the cause may have passed by then.

Without it, tries take a quarter of a second each, and a moment without memory fails trial after trial.
"""

_trial_failed = TuneController._process_trial_failure
_task_failed = RayActorManager._actor_task_failed
_start_failed = RayActorManager._actor_start_failed


def count_lost_workers() -> None:
    """Make Tune treat every lost worker as an actor that died, and count its death once."""
    TuneController._process_trial_failure = _trial_failed_once  # type: ignore[method-assign]
    RayActorManager._actor_task_failed = _task_failed_or_lost  # type: ignore[method-assign]
    RayActorManager._actor_start_failed = _start_failed_or_lost  # type: ignore[method-assign]


def _trial_failed_once(self: TuneController, trial: Trial, exception: Any) -> None:
    """Handle a trial's failure, unless it waits for another worker already.

    If a warm worker is lost before its next trial has begun, Tune hears of it twice. It would retry the trial
    and then, because it does not run, fail it; and it would take the trial for one that begins for ever.
    """
    self._resetting_trials.discard(trial)
    if trial.status == Trial.PENDING and trial not in self._trial_to_actor:
        return
    _trial_failed(self, trial, exception)


def _task_failed_or_lost(
    self: RayActorManager, tracked_actor_task: TrackedActorTask, exception: Exception
) -> None:
    _task_failed(self, tracked_actor_task, as_death(exception))


def _start_failed_or_lost(self: RayActorManager, tracked_actor: TrackedActor, exception: Exception) -> None:
    death = as_death(exception)
    if isinstance(death, RayActorError) and not death.actor_init_failed:
        time.sleep(START_AGAIN_SECONDS)
    _start_failed(self, tracked_actor, death)


def as_death(exception: Exception) -> Exception:
    """Return ``RayActorError`` for any of Ray's errors that means that a process is gone."""
    if isinstance(exception, RayError) and not isinstance(exception, RayActorError | RayTaskError):
        return RayActorError(error_msg=_reason(exception))
    return exception


def _reason(error: RayError) -> str:
    if isinstance(error, OutOfMemoryError):
        # Pages of advice follow; the numbers are in the first lines.
        return f"its machine {OUT_OF_MEMORY}: {' '.join(str(error).splitlines()[:2])}"
    return f"{type(error).__name__}: {error}"
