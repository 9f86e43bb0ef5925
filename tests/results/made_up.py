"""Result sets made up row by row, so that what must be said of them is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from results.loading import ResultSet
from results.schema import TABLES
from results.store import make_table

ACCURACY = {"head": 0.70, "full": 0.85, "lora": 0.86}
"""What each method's best configuration gets right on test, unless a test says otherwise."""

SETTINGS = {
    "name": "made-up",
    "search": {"trials": 4},
    "confirm": {"seeds": 3},
    "model": {"path": "gpt2"},
}


@dataclass
class MadeUp:
    """Rows of the tables of an experiment."""

    trials: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)

    def __add__(self, other: MadeUp) -> MadeUp:
        return MadeUp(**{table: rows + getattr(other, table) for table, rows in vars(self).items()})

    def results(self) -> ResultSet:
        return ResultSet(**{name: make_table(name, getattr(self, name)).to_pandas() for name in TABLES})

    def save(self, directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            pq.write_table(make_table(name, getattr(self, name)), directory / f"{name}.parquet")
        return directory

    def fail(self, places: Sequence[int], error: str) -> None:
        """Turn trials, by their place, into failures with an error's text."""
        for place in places:
            row = self.trials[place]
            row |= {"status": "failed", "error": error}
            for name in ("validation_accuracy", "validation_loss", "train_loss", "final_train_loss"):
                row[name] = None
            self.metrics[:] = [point for point in self.metrics if point["trial_id"] != row["trial_id"]]

    def fail_confirm(self, method: str, seeds: Sequence[int]) -> None:
        """Turn a method's confirm trials of some seeds into ones that diverged."""
        names = {f"{method}-seed{seed}" for seed in seeds}
        for row in self.trials:
            if row["trial_id"] in names:
                row |= {"status": "diverged", "error": "loss became nan"}
                row |= {"test_accuracy": None, "test_macro_f1": None, "final_train_loss": None}
        self.predictions[:] = [row for row in self.predictions if row["trial_id"] not in names]


def make_up(
    name: str = "made-up",
    accuracy: Mapping[str, float] = ACCURACY,
    trials: int = 4,
    seeds: int = 3,
    examples: int = 200,
    evaluations: int = 4,
    kinds: Mapping[str, str] | None = None,
) -> MadeUp:
    """Make up an experiment: methods with a known share of right answers on test."""
    generator = np.random.default_rng(len(name))
    made = MadeUp()
    for index, (method, share) in enumerate(accuracy.items()):
        identity = {"experiment": name, "method": method}
        kind = (kinds or {}).get(method, method)
        hyperparameters: dict[str, float] = {}
        for number in range(trials + seeds):
            phase = "search" if number < trials else "confirm"
            seed = number - trials
            trial_id = f"{method}-{number:03d}" if phase == "search" else f"{method}-seed{seed}"
            mine = {**identity, "trial_id": trial_id, "phase": phase}
            drawn = {"hp_learning_rate": float(10 ** generator.uniform(-5, -3))}
            if "lora" in kind:
                drawn["hp_rank"] = int(2 ** generator.integers(1, 6))
            # The last trial of the search is its best: what is confirmed.
            hyperparameters = drawn if phase == "search" or not trials else hyperparameters
            got = float(np.clip(share - 0.1 + 0.1 * (number % trials) / trials, 0, 1)) if trials else share
            made.trials.append(
                {
                    **mine,
                    "kind": kind,
                    "trial_number": number if phase == "search" else seed,
                    "seed": seed if phase == "confirm" else 1000 + number,
                    "status": "completed",
                    "evaluations": evaluations,
                    "validation_accuracy": got,
                    "validation_loss": 1 - got,
                    "train_loss": 0.5,
                    "final_train_loss": 0.4 + 0.01 * seed + 0.1 * index,
                    "train_seconds": 10.0 + index + 0.1 * seed,
                    "examples": 1000,
                    "peak_memory_bytes": 10**8 * (index + 1) + number,
                    "peak_memory_source": "process_high_water",
                    "model_bytes": 10**7,
                    "checkpoint_bytes": 10**6,
                    "trainable_parameters": 1000 * (index + 1),
                    "started_at": datetime(2026, 1, 1, tzinfo=UTC),
                    "ended_at": datetime(2026, 1, 1, 0, 1, tzinfo=UTC),
                    "base_model": "gpt2",
                    "dataset": "glue/sst2",
                    "splits": json.dumps({"train": "split train of glue/sst2: 1,000 examples"}),
                    "versions": json.dumps({"torch": "2"}),
                    "git_revision": "abc",
                    "device": "cpu",
                    "node": "here",
                    "settings": json.dumps({"experiment": SETTINGS | {"name": name}}),
                    **hyperparameters,
                }
            )
            made.metrics += [
                {
                    **mine,
                    "evaluation": point,
                    "epoch": point / evaluations,
                    "train_loss": 0.7 / point,
                    "validation_loss": 0.7 - 0.05 * point + 0.01 * index,
                    "validation_accuracy": got * point / evaluations,
                }
                for point in range(1, evaluations + 1)
            ]
            if phase == "confirm":
                _judge(made, seed, share, examples, generator)
    return made


def _judge(made: MadeUp, seed: int, share: float, examples: int, generator: np.random.Generator) -> None:
    """Plant test predictions: exactly the stated share, moved by one example from seed to seed, is right."""
    row = made.trials[-1]
    right = np.zeros(examples, dtype=bool)
    right[generator.choice(examples, round(share * examples) + seed % 2, replace=False)] = True
    labels = np.where(np.arange(examples) % 2 == 0, "0", "1")
    row["test_accuracy"] = float(right.mean())
    row["test_macro_f1"] = float(right.mean())
    for example, (label, is_right) in enumerate(zip(labels, right, strict=True)):
        made.predictions.append(
            {
                **{name: row[name] for name in ("experiment", "method", "trial_id", "phase", "seed")},
                "example_id": example,
                "label": str(label),
                "prediction": str(label) if is_right else ("1" if label == "0" else "0"),
                "loss": 0.1 if is_right else 2.0,
                "logits": [0.0, 1.0],
            }
        )
