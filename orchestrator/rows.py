"""Rows of the result set, built from what trials reported: plain functions over values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import numpy as np
from scipy.special import log_softmax

from orchestrator.experiment import Assignment, Experiment
from orchestrator.history import TrialHistory
from results.evaluation import Checkpoint, Evaluation, TestOutcome
from results.schema import METRICS
from results.store import Row, TrialRecord

CURVE_COLUMNS = [field.name for field in fields(Evaluation) if field.name in METRICS.names]
"""The fields of an evaluation that the metrics table holds."""

CONSTANT_COLUMNS = (
    "peak_memory_source",
    "trainable_parameters",
    "total_parameters",
    "model_bytes",
    "device",
)
"""The fields that are the same in all evaluations of a trial, and so are in its row."""


@dataclass(frozen=True)
class Provenance:
    """What every row of an experiment has in common."""

    base_model_fingerprint: str
    dataset: str
    dataset_fingerprint: str
    splits: Mapping[str, str]  # how each split was made, in words
    git_revision: str | None
    versions: Mapping[str, str]
    labels: Sequence[str]  # names, in the order of their indices


def trial_record(experiment: Experiment, provenance: Provenance, trial: TrialHistory) -> TrialRecord:
    """Build the journal record of a trial."""
    identity = {
        "experiment": experiment.name,
        "trial_id": trial.spec.trial_id,
        "method": trial.spec.method,
        "phase": trial.assignment.phase,
    }
    return TrialRecord(
        trial={**identity, **_trial_row(experiment, provenance, trial)},
        metrics=[
            {**identity, **{name: getattr(point, name) for name in CURVE_COLUMNS}} for point in trial.curve
        ],
        checkpoints=[
            {
                "experiment": experiment.name,
                "trial_id": trial.spec.trial_id,
                "method": trial.spec.method,
                "evaluation": point.evaluation,
                "path": f"checkpoints/{trial.spec.trial_id}",
                "kind": point.checkpoint.kind,
                "bytes": point.checkpoint.bytes,
                "sha256": point.checkpoint.sha256,
            }
            for point in [trial.best]
            if point is not None and point.checkpoint is not None and trial.keeps_checkpoint
        ],
        predictions=[{**identity, **row} for row in _predictions(provenance.labels, trial)],
    )


def _predictions(labels: Sequence[str], trial: TrialHistory) -> Iterator[dict[str, Any]]:
    if trial.test is None:
        return
    outcome = trial.test
    losses = -log_softmax(outcome.logits.astype(float), axis=1)
    for example_id, label, logits, loss in zip(
        outcome.example_ids, outcome.labels, outcome.logits, losses, strict=True
    ):
        yield {
            "seed": trial.spec.seed,
            "example_id": int(example_id),
            "label": labels[label],
            "prediction": labels[logits.argmax()],
            "loss": float(loss[label]),
            "logits": logits.tolist(),
        }


def trial_history(experiment: Experiment, record: TrialRecord, labels: Sequence[str]) -> TrialHistory:
    """Rebuild a trial from its journal record: the inverse of :func:`trial_record`."""
    row = record.trial
    told = json.loads(row["settings"])["hyperparameters"]
    order = [name for name in experiment.space(row["method"]) if name in told]
    hyperparameters = {**dict.fromkeys(order), **told}  # in the order of the space, as studies suggest them
    assignment = Assignment(row["method"], row["trial_number"], hyperparameters, row["phase"])
    curve = [
        Evaluation(
            **{name: point[name] for name in CURVE_COLUMNS},
            **{name: row[name] for name in CONSTANT_COLUMNS},
            is_best=is_best,
            is_last=row["status"] == "completed" and point["evaluation"] == row["evaluations"],
            checkpoint=_best_checkpoint(record) if point["evaluation"] == row["best_evaluation"] else None,
            test=_test(record, labels) if point["evaluation"] == row["evaluations"] else None,
        )
        for point, is_best in zip(record.metrics, _are_best(record.metrics), strict=True)
    ]
    started, ended = (row[name] and datetime.fromisoformat(row[name]) for name in ("started_at", "ended_at"))
    return TrialHistory(
        assignment,
        experiment.trial_spec(assignment),
        status=row["status"],
        error=row["error"],
        curve=curve,
        started_at=started,
        ended_at=ended,
        node=row["node"],
        keeps_checkpoint=bool(record.checkpoints),
        retries=row.get("retries", 0),  # runs of earlier versions had none
        lost_seconds=row.get("lost_seconds", 0.0),
    )


def _are_best(curve: Sequence[Row]) -> list[bool]:
    """Say of each evaluation whether it was the best so far, as ``run_trial`` does."""
    scores = [(point["validation_accuracy"], -point["validation_loss"]) for point in curve]
    return [index == 0 or score > max(scores[:index]) for index, score in enumerate(scores)]


def _test(record: TrialRecord, labels: Sequence[str]) -> TestOutcome | None:
    if not record.predictions:
        return None
    row, rows = record.trial, record.predictions
    return TestOutcome(
        loss=row["test_loss"],
        accuracy=row["test_accuracy"],
        macro_f1=row["test_macro_f1"],
        seconds=row["test_seconds"],
        example_ids=np.array([prediction["example_id"] for prediction in rows]),
        labels=np.array([labels.index(prediction["label"]) for prediction in rows]),
        logits=np.array([prediction["logits"] for prediction in rows], dtype=np.float32),
    )


def _best_checkpoint(record: TrialRecord) -> Checkpoint | None:
    if record.trial["checkpoint_bytes"] is None:
        return None
    # Of a checkpoint that was dropped, only the size is still known.
    dropped = {"path": "", "kind": "", "bytes": record.trial["checkpoint_bytes"], "sha256": ""}
    kept = record.checkpoints[0] if record.checkpoints else dropped
    return Checkpoint(**{field.name: kept[field.name] for field in fields(Checkpoint)})


def _trial_row(experiment: Experiment, provenance: Provenance, trial: TrialHistory) -> dict[str, Any]:
    return {
        "kind": trial.spec.kind,
        "trial_number": trial.assignment.number,
        "seed": trial.spec.seed,
        "status": trial.status,
        "error": trial.error,
        **{f"hp_{name}": value for name, value in trial.assignment.hyperparameters.items()},
        **_outcome(trial),
        **_test_outcome(trial),
        **_cost(trial),
        "trials_per_pack": experiment.resources.pack_size,
        "gpus_per_trial": experiment.resources.gpus_per_trial,
        "retries": trial.retries,
        "lost_seconds": trial.lost_seconds,
        "started_at": trial.started_at,
        "ended_at": trial.ended_at,
        "base_model": experiment.model.path,
        "base_model_fingerprint": provenance.base_model_fingerprint,
        "dataset": provenance.dataset,
        "splits": json.dumps(dict(provenance.splits)),
        "dataset_fingerprint": provenance.dataset_fingerprint,
        "git_revision": provenance.git_revision,
        "versions": json.dumps(dict(provenance.versions), sort_keys=True),
        "node": trial.node,
        "settings": json.dumps(
            {
                "experiment": experiment.model_dump(mode="json"),
                "number": trial.assignment.number,
                "hyperparameters": dict(trial.assignment.hyperparameters),
            },
            sort_keys=True,
        ),
    }


def _outcome(trial: TrialHistory) -> dict[str, Any]:
    best = trial.best
    if best is None:
        return {"evaluations": len(trial.curve)}
    last = trial.curve[-1]
    return {
        "evaluations": len(trial.curve),
        "best_evaluation": best.evaluation,
        "steps": last.step,
        "epochs": last.epoch,
        "examples": last.examples,
        "tokens": last.tokens,
        "train_loss": best.train_loss,
        "final_train_loss": last.train_loss,
        "validation_loss": best.validation_loss,
        "validation_accuracy": best.validation_accuracy,
        "validation_macro_f1": best.validation_macro_f1,
    }


def _test_outcome(trial: TrialHistory) -> dict[str, Any]:
    if trial.test is None:
        return {}
    return {
        "test_loss": trial.test.loss,
        "test_accuracy": trial.test.accuracy,
        "test_macro_f1": trial.test.macro_f1,
        "test_seconds": trial.test.seconds,
    }


def _cost(trial: TrialHistory) -> dict[str, Any]:
    if not trial.curve:
        return {}
    last = trial.curve[-1]
    checkpoint = trial.best.checkpoint if trial.best else None
    return {
        "train_seconds": last.train_seconds,
        "evaluation_seconds": last.evaluation_seconds,
        "setup_seconds": last.setup_seconds,
        "examples_per_second": last.examples_per_second,
        "tokens_per_second": last.tokens / last.train_seconds if last.train_seconds else None,
        "peak_memory_bytes": last.peak_memory_bytes,
        "checkpoint_bytes": checkpoint.bytes if checkpoint else None,
        **{name: getattr(last, name) for name in CONSTANT_COLUMNS},
    }
