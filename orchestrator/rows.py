"""Rows of the result set from what a trial reported: plain functions over values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.experiment import Experiment
from results.store import TrialRecord
from trainables.trial import Evaluation, TrialSpec


@dataclass(frozen=True)
class Provenance:
    """What every row of an experiment has in common."""

    base_model_fingerprint: str
    dataset_fingerprint: str
    git_revision: str | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class TrialHistory:
    """All that is known of one trial so far."""

    spec: TrialSpec
    number: int  # n-th trial of its method, from 0
    hyperparameters: Mapping[str, Any]
    phase: str  # "search" or "confirm"
    status: str = "running"
    error: str | None = None
    curve: Sequence[Evaluation] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    node: str | None = None
    keeps_checkpoint: bool = True

    @property
    def best(self) -> Evaluation | None:
        """The evaluation whose checkpoint was kept."""
        return next((point for point in reversed(self.curve) if point.is_best), None)

    @property
    def rank(self) -> tuple[float, float, int]:
        """Sort key: better trials first; accuracy, then loss, then the earlier trial."""
        if self.best is None:
            return (0.0, float("inf"), self.number)
        return (-self.best.validation_accuracy, self.best.validation_loss, self.number)


def trial_record(experiment: Experiment, provenance: Provenance, trial: TrialHistory) -> TrialRecord:
    """Build the journal record of a trial."""
    identity = {
        "experiment": experiment.name,
        "trial_id": trial.spec.trial_id,
        "method": trial.spec.method,
        "phase": trial.phase,
    }
    return TrialRecord(
        trial={**identity, **_trial_row(experiment, provenance, trial)},
        metrics=[{**identity, **_metrics_row(point)} for point in trial.curve],
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
    )


def _trial_row(experiment: Experiment, provenance: Provenance, trial: TrialHistory) -> dict[str, Any]:
    return {
        "kind": trial.spec.kind,
        "trial_number": trial.number,
        "seed": trial.spec.seed,
        "status": trial.status,
        "error": trial.error,
        **{f"hp_{name}": value for name, value in trial.hyperparameters.items()},
        **_outcome(trial),
        **_cost(trial),
        "started_at": trial.started_at,
        "ended_at": trial.ended_at,
        "base_model": experiment.model.path,
        "base_model_fingerprint": provenance.base_model_fingerprint,
        "dataset": "/".join(filter(None, (experiment.data.path, experiment.data.config)))
        if experiment.data.path
        else experiment.data.train,
        "dataset_fingerprint": provenance.dataset_fingerprint,
        "git_revision": provenance.git_revision,
        "versions": json.dumps(dict(provenance.versions), sort_keys=True),
        "node": trial.node,
        "settings": json.dumps(
            {
                "experiment": experiment.model_dump(mode="json"),
                "number": trial.number,
                "hyperparameters": dict(trial.hyperparameters),
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


def _cost(trial: TrialHistory) -> dict[str, Any]:
    if not trial.curve:
        return {}
    last = trial.curve[-1]
    checkpoint = trial.best.checkpoint if trial.best else None
    return {
        "train_seconds": last.train_seconds,
        "evaluation_seconds": last.evaluation_seconds,
        "setup_seconds": last.setup_seconds,
        "examples_per_second": last.examples / last.train_seconds if last.train_seconds else None,
        "tokens_per_second": last.tokens / last.train_seconds if last.train_seconds else None,
        "peak_memory_bytes": last.peak_memory_bytes,
        "peak_memory_source": last.peak_memory_source,
        "trainable_parameters": last.trainable_parameters,
        "total_parameters": last.total_parameters,
        "model_bytes": last.model_bytes,
        "checkpoint_bytes": checkpoint.bytes if checkpoint else None,
        "device": last.device,
    }


def _metrics_row(point: Evaluation) -> dict[str, Any]:
    return {
        "evaluation": point.evaluation,
        "step": point.step,
        "epoch": point.epoch,
        "examples": point.examples,
        "tokens": point.tokens,
        "train_loss": point.train_loss,
        "validation_loss": point.validation_loss,
        "validation_accuracy": point.validation_accuracy,
        "validation_macro_f1": point.validation_macro_f1,
        "train_seconds": point.train_seconds,
        "evaluation_seconds": point.evaluation_seconds,
        "setup_seconds": point.setup_seconds,
        "peak_memory_bytes": point.peak_memory_bytes,
    }
