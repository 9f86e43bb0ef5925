"""A stand-in for the worker in benchmarks.scale and benchmarks.reports: it sleeps where a trial would train.

It imports neither torch nor the orchestrator: forty workers that did would not fit in memory.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

if TYPE_CHECKING:
    from results.evaluation import Evaluation

SECONDS = 1.0
EVALUATIONS = 3


def make_evaluation(fields: dict[str, Any]) -> Evaluation:
    """Make the evaluation in the driver, where its class is already loaded."""
    from results.evaluation import Evaluation

    return Evaluation(**fields)


class Point:
    """What a worker sends: it becomes an ``Evaluation`` on receipt."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __reduce__(self) -> tuple[Any, ...]:
        return make_evaluation, (self._fields,)


class Sleeper(tune.Trainable):
    """Report a made-up curve over a second of sleep."""

    seconds, evaluations = SECONDS, EVALUATIONS

    def setup(self, config: dict[str, Any]) -> None:
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        assignment = config["assignment"]
        digest = hashlib.sha256(repr(sorted(assignment.items())).encode()).digest()
        self._accuracy = 0.5 + digest[0] / 1000
        self._evaluation = 0

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "state").write_bytes(bytes(1000))

    def load_checkpoint(self, checkpoint: str) -> None:  # type: ignore[override]  # a directory, as saved
        raise AssertionError("no node of the benchmark leaves")

    def step(self) -> dict[str, Any]:
        time.sleep(self.seconds / self.evaluations)
        self._evaluation += 1
        done = self._evaluation == self.evaluations
        accuracy = self._accuracy + self._evaluation / 100
        seconds = self.seconds * self._evaluation / self.evaluations
        fields = {
            "evaluation": self._evaluation,
            "step": 10 * self._evaluation,
            "epoch": self._evaluation / self.evaluations,
            "examples": 160 * self._evaluation,
            "tokens": 4000 * self._evaluation,
            "train_loss": 1 - accuracy,
            "validation_loss": 1 - accuracy,
            "validation_accuracy": accuracy,
            "validation_macro_f1": accuracy,
            "train_seconds": seconds,
            "evaluation_seconds": 0.0,
            "setup_seconds": 0.0,
            "peak_memory_bytes": None,
            "peak_memory_source": None,
            "trainable_parameters": 0,
            "total_parameters": 0,
            "model_bytes": 0,
            "is_best": True,
            "is_last": done,
            "checkpoint": None,
            "device": "none",
        }
        return {
            "point": Point(fields),
            "evaluation": self._evaluation,
            "objective": accuracy,
            "done": done,
        }


class Short(Sleeper):
    """Report a short curve as fast as it is taken."""

    seconds = 0.0


class Long(Short):
    """Report a long curve as fast as it is taken."""

    evaluations = 50
