"""The Arrow schema of each table of the result set, column by column.

Every field's metadata has its meaning under ``description``; units are in the names. A trial's
hyperparameters are one column each, ``hp_<name>``, added after the columns named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

import pyarrow as pa

SCHEMA_VERSION: Final = 2
HYPERPARAMETER_PREFIX: Final = "hp_"

Status = Literal["running", "completed", "stopped", "diverged", "out_of_memory", "failed", "interrupted"]
"""What became of a trial: ``stopped`` early by its bracket, or ``interrupted`` with the run."""

STATUSES: Final[tuple[Status, ...]] = get_args(Status)

FAILED: Final[tuple[Status, ...]] = ("diverged", "out_of_memory", "failed")
"""Statuses of trials that failed: their evaluations, if they made any, do not count."""

ENDED_WELL: Final[tuple[Status, ...]] = ("completed", "stopped")
"""Statuses of trials that ended without failing."""

UNFINISHED: Final[tuple[Status, ...]] = ("running", "interrupted")
"""Statuses of trials that ``--resume`` continues; all others have ended."""

STRING, INT, FLOAT = pa.string(), pa.int64(), pa.float64()
TIME = pa.timestamp("us", tz="UTC")


def _schema(columns: Mapping[str, tuple[pa.DataType, str]]) -> pa.Schema:
    fields = [
        pa.field(name, kind, metadata={"description": description})
        for name, (kind, description) in columns.items()
    ]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


_IDENTITY: Final = {
    "experiment": (STRING, "name of the experiment"),
    "trial_id": (STRING, "method and number of the trial, unique in its experiment"),
    "method": (STRING, "the experiment's name for the method"),
    "phase": (STRING, "search, or confirm"),
}

_CURVE: Final = {
    "train_loss": (FLOAT, "mean cross-entropy, in nats, over the examples since the evaluation before"),
    "validation_loss": (FLOAT, "mean cross-entropy on validation, in nats"),
    "validation_accuracy": (FLOAT, "share of validation examples labelled right, 0 to 1"),
    "validation_macro_f1": (FLOAT, "unweighted mean over labels of F1 on validation, 0 to 1"),
}

TRIALS: Final = _schema(
    {
        **_IDENTITY,
        "kind": (STRING, "kind of method: full, head, lora, dora, qlora, ..."),
        "trial_number": (INT, "n-th trial of its method, from 0; number 0 is the published default"),
        "seed": (INT, "decides initialization, data order and dropout"),
        "status": (STRING, f"{', '.join(STATUSES[:-1])} or {STATUSES[-1]}"),
        "error": (STRING, "text of the error that ended the trial"),
        "evaluations": (INT, "evaluations made"),
        "best_evaluation": (INT, "evaluation with the best validation accuracy; its numbers are below"),
        "steps": (INT, "optimizer steps taken"),
        "epochs": (FLOAT, "passes over the training examples made"),
        "examples": (INT, "training examples seen"),
        "tokens": (INT, "training tokens seen, without padding"),
        **_CURVE,
        "final_train_loss": (FLOAT, "train_loss of the last evaluation, in nats"),
        "test_loss": (FLOAT, "mean cross-entropy on test, in nats; confirm phase only"),
        "test_accuracy": (FLOAT, "share of test examples labelled right; confirm phase only"),
        "test_macro_f1": (FLOAT, "macro-F1 on test; confirm phase only"),
        "test_seconds": (FLOAT, "time in the evaluation on test; confirm phase only"),
        "train_seconds": (
            FLOAT,
            "time in training steps and nothing else; in a pack, its share by tokens",
        ),
        "trials_per_pack": (INT, "trials that its process may have trained side by side; 1 is alone"),
        "evaluation_seconds": (FLOAT, "time in evaluations"),
        "setup_seconds": (FLOAT, "time to build the model, wrap it and move it to its device"),
        "examples_per_second": (FLOAT, "training examples per second of train_seconds"),
        "tokens_per_second": (FLOAT, "training tokens without padding per second of train_seconds"),
        "peak_memory_bytes": (
            INT,
            "most memory held at once during the trial, by its first worker or by its whole pack",
        ),
        "peak_memory_source": (STRING, "process_high_water (Linux VmHWM of the worker) or cuda_allocator"),
        "trainable_parameters": (INT, "parameters that get gradients"),
        "total_parameters": (INT, "all parameters, counted as unquantized"),
        "model_bytes": (INT, "parameters and buffers as loaded, with quantization state"),
        "checkpoint_bytes": (INT, "all files of the best checkpoint"),
        "retries": (INT, "times the trial was started again after its worker died"),
        "lost_seconds": (FLOAT, "wall time lost when workers died: since the last state saved of the trial"),
        "started_at": (TIME, "when the trial started"),
        "ended_at": (TIME, "when the trial ended; null while it runs"),
        "base_model": (STRING, "hub id, directory or embedded"),
        "base_model_fingerprint": (STRING, "sha256 of the base weights"),
        "dataset": (STRING, "where train came from: hub id and configuration, file or embedded"),
        "splits": (STRING, "JSON: how each split was made and how many examples it has"),
        "dataset_fingerprint": (STRING, "sha256 of the tokenized splits"),
        "git_revision": (STRING, "commit of the program; -dirty if it had changes"),
        "versions": (STRING, "JSON: version of each library"),
        "device": (STRING, "what the trial ran on"),
        "node": (STRING, "host name"),
        "settings": (STRING, "JSON: all that is needed to train this trial again"),
    }
)

METRICS: Final = _schema(
    {
        **_IDENTITY,
        "evaluation": (INT, "1, 2, ..."),
        "step": (INT, "optimizer steps so far"),
        "epoch": (FLOAT, "passes over the training examples so far"),
        "examples": (INT, "training examples seen so far"),
        "tokens": (INT, "training tokens seen so far, without padding"),
        **_CURVE,
        "train_seconds": (FLOAT, "time in training so far"),
        "evaluation_seconds": (FLOAT, "time in evaluations so far"),
        "setup_seconds": (FLOAT, "time of set-up"),
        "peak_memory_bytes": (INT, "most memory held at once so far"),
    }
)

CHECKPOINTS: Final = _schema(
    {
        "experiment": _IDENTITY["experiment"],
        "trial_id": _IDENTITY["trial_id"],
        "method": _IDENTITY["method"],
        "evaluation": (INT, "evaluation the checkpoint was written at"),
        "path": (STRING, "directory, relative to the run directory"),
        "kind": (STRING, "adapter or full"),
        "bytes": (INT, "of all its files"),
        "sha256": (STRING, "of its weights file"),
    }
)

PREDICTIONS: Final = _schema(
    {
        **_IDENTITY,
        "seed": (INT, "seed of the trial"),
        "example_id": (INT, "row of the example in its source"),
        "label": (STRING, "right label"),
        "prediction": (STRING, "label predicted"),
        "loss": (FLOAT, "cross-entropy of the right label, in nats"),
        "logits": (pa.list_(pa.float32()), "one per label"),
    }
)

TABLES: Final[Mapping[str, pa.Schema]] = {
    "trials": TRIALS,
    "metrics": METRICS,
    "checkpoints": CHECKPOINTS,
    "predictions": PREDICTIONS,
}
