"""The Arrow schema of each table of the result set, column by column.

Each field's metadata has its meaning under ``description``; units are in the names. Each hyperparameter of a
trial gets a column ``hp_<name>``, after the columns listed here.
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
    "trial_id": (STRING, "METHOD-NNN in the search, METHOD-seedN in the confirm phase"),
    "method": (STRING, "the experiment's name for the method"),
    "phase": (STRING, "search or confirm"),
}

_CURVE: Final = {
    "train_loss": (FLOAT, "mean cross-entropy, in nats, over the examples since the previous evaluation"),
    "validation_loss": (FLOAT, "mean cross-entropy on validation, in nats"),
    "validation_accuracy": (FLOAT, "share of validation examples labelled correctly, 0 to 1"),
    "validation_macro_f1": (FLOAT, "F1 on validation, averaged over labels without weights, 0 to 1"),
}

TRIALS: Final = _schema(
    {
        **_IDENTITY,
        "kind": (STRING, "kind of method: full, head, lora, dora, qlora, ..."),
        "trial_number": (
            INT,
            "number of the trial within its method, from 0; the search's 0 is the published default, or what"
            " the search space has nearest to it",
        ),
        "seed": (INT, "determines initialization, data order and dropout"),
        "status": (
            STRING,
            "running; completed; stopped (early, by ASHA or as its method's budget was spent: no failure);"
            " diverged, out_of_memory or failed (failures); interrupted (--resume continues it)",
        ),
        "error": (STRING, "text of the error that ended the trial"),
        "evaluations": (INT, "evaluations made"),
        "best_evaluation": (
            INT,
            "evaluation with the best validation accuracy, or of equal ones the lower loss; train_loss and"
            " validation_* are its numbers",
        ),
        "steps": (INT, "optimizer steps taken in all"),
        "epochs": (FLOAT, "passes over the training examples in all"),
        "examples": (INT, "training examples seen in all"),
        "tokens": (INT, "training tokens seen in all, without padding"),
        **_CURVE,
        "final_train_loss": (FLOAT, "train_loss of the last evaluation, in nats"),
        "test_loss": (FLOAT, "mean cross-entropy on test, in nats; confirm phase only"),
        "test_accuracy": (FLOAT, "share of test examples labelled correctly; confirm phase only"),
        "test_macro_f1": (FLOAT, "macro-F1 on test; confirm phase only"),
        "test_seconds": (FLOAT, "time of the evaluation on test; confirm phase only"),
        "train_seconds": (
            FLOAT,
            "time in training steps only; in a pack, its share by tokens; a shared GPU's include waiting",
        ),
        "trials_per_pack": (INT, "trials that its process may have trained together; 1 means alone"),
        "gpus_per_trial": (
            FLOAT,
            "GPUs that it asked for; less than 1 is part of one that others may use, too",
        ),
        "evaluation_seconds": (FLOAT, "time in evaluations"),
        "setup_seconds": (FLOAT, "time to build the model, wrap it and move it to its device"),
        "examples_per_second": (FLOAT, "training examples per second of train_seconds"),
        "tokens_per_second": (FLOAT, "training tokens without padding per second of train_seconds"),
        "peak_memory_bytes": (
            INT,
            "peak memory during the trial, of its first worker or of its whole pack",
        ),
        "peak_memory_source": (STRING, "process_high_water (Linux VmHWM of the worker) or cuda_allocator"),
        "trainable_parameters": (INT, "parameters that receive gradients"),
        "total_parameters": (INT, "all parameters, counted as unquantized"),
        "model_bytes": (INT, "parameters and buffers as loaded, including quantization state"),
        "checkpoint_bytes": (INT, "size of all files of the best checkpoint"),
        "retries": (INT, "times the trial was restarted after its worker died"),
        "lost_seconds": (
            FLOAT,
            "wall time lost when workers died, each time since the trial's last saved state",
        ),
        "started_at": (TIME, "when the trial started"),
        "ended_at": (TIME, "when the trial ended; null while it runs"),
        "base_model": (STRING, "hub id, directory or embedded"),
        "base_model_fingerprint": (STRING, "sha256 of the base weights"),
        "dataset": (STRING, "source of the training data: hub id and configuration, file or embedded"),
        "splits": (STRING, "JSON: how each split was made and how many examples it has"),
        "dataset_fingerprint": (STRING, "sha256 of the tokenized splits"),
        "git_revision": (STRING, "commit of the program; ends in -dirty if there were uncommitted changes"),
        "versions": (STRING, "JSON: version of each library"),
        "device": (STRING, "device the trial ran on"),
        "node": (STRING, "host name"),
        "settings": (STRING, "JSON: everything needed to retrain this trial"),
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
        "train_seconds": (FLOAT, "time in training steps so far"),
        "evaluation_seconds": (FLOAT, "time in evaluations so far"),
        "setup_seconds": (FLOAT, "time of set-up"),
        "peak_memory_bytes": (INT, "peak memory so far"),
    }
)

CHECKPOINTS: Final = _schema(
    {
        "experiment": _IDENTITY["experiment"],
        "trial_id": _IDENTITY["trial_id"],
        "method": _IDENTITY["method"],
        "evaluation": (INT, "evaluation at which the checkpoint was written"),
        "path": (STRING, "directory, relative to the run directory"),
        "kind": (STRING, "adapter or full"),
        "bytes": (INT, "size of all its files"),
        "sha256": (STRING, "hash of its weights file"),
    }
)

PREDICTIONS: Final = _schema(
    {
        **_IDENTITY,
        "seed": (INT, "seed of the trial"),
        "example_id": (INT, "row of the example in its source, from 0; headers and blank lines do not count"),
        "label": (STRING, "correct label"),
        "prediction": (STRING, "predicted label"),
        "loss": (FLOAT, "cross-entropy of the correct label, in nats"),
        "logits": (pa.list_(pa.float32()), "one per label"),
    }
)

TABLES: Final[Mapping[str, pa.Schema]] = {
    "trials": TRIALS,
    "metrics": METRICS,
    "checkpoints": CHECKPOINTS,
    "predictions": PREDICTIONS,
}
