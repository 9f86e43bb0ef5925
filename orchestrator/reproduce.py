"""Retrains a recorded trial from its row alone and says whether it comes out the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from orchestrator.errors import ExperimentError, located
from orchestrator.experiment import Assignment, Experiment
from orchestrator.prepare import check_fingerprints, prepare
from orchestrator.trust import check_trusted
from results import load
from results.errors import ResultSetError
from results.remote import StorageError
from trainables.setup import TrialSpec
from trainables.trial import TrialInputs, run_trial

COMPARED = ("train_loss", "validation_loss", "validation_accuracy", "validation_macro_f1", "tokens")
JUDGED = ("loss", "accuracy", "macro_f1")


@dataclass(frozen=True)
class Reproduction:
    """The outcome: one line per difference, none when the numbers are identical."""

    evaluations: int
    differences: tuple[str, ...]


def reproduce(
    run: str, trial_id: str, say: Callable[[str], None], overrides: Sequence[str] = ()
) -> Reproduction:
    """Retrain a trial for as many evaluations as were recorded, and compare every one exactly.

    Its outcome on the test split is compared too, if it was judged there.

    Arguments:
        run: the run's directory, a path or a URI.
        trial_id: the trial's.
        say: is told of steps that take long.
        overrides: say whether to trust Python code that comes with the model; the recorded settings do not.

    Raises:
        ExperimentError: if there is no such run or trial, its data or base model has changed, it was not
            trained alone in one process, or it was trained on a GPU and there is none here.
    """
    row, curve = _recorded(run, trial_id)
    experiment, spec = _settings(row, run)
    check_trusted(experiment, overrides, run)
    _check_alone(row, experiment, run)
    with located(run):
        prepared = prepare(experiment, say)
        check_fingerprints(row, prepared)
    is_judged = pd.notna(row["test_accuracy"])
    with TemporaryDirectory() as place:
        inputs = TrialInputs(
            spec,
            prepared.data,
            prepared.base,
            Path(place) / "checkpoint" if is_judged else None,
            prepared.test if is_judged else None,
            device=_device_of(row, run),
        )
        points = list(islice(run_trial(inputs), len(curve)))
    differences = [
        f"evaluation {point.evaluation}: {column} was {recorded[column]!r}, is {getattr(point, column)!r}"
        for recorded, point in zip(curve, points, strict=True)
        for column in COMPARED
        if recorded[column] != getattr(point, column)
    ]
    if is_judged:
        now = {column: getattr(points[-1].test, column, None) for column in JUDGED}
        differences += [
            f"test: {column} was {row[f'test_{column}']!r}, is {value!r}"
            for column, value in now.items()
            if row[f"test_{column}"] != value
        ]
    return Reproduction(len(curve), tuple(differences))


def _check_alone(row: Mapping[str, Any], experiment: Experiment, where: str) -> None:
    """Refuse a trial of a pack or of several workers: one process alone cannot give exactly its numbers."""
    packed = pd.notna(row["trials_per_pack"]) and row["trials_per_pack"] > 1
    workers = experiment.resources.workers_per_trial
    if packed or workers > 1:
        how = "beside others in a pack" if packed else f"by {workers} workers"
        raise ExperimentError(
            f"{where}: {row['trial_id']} was trained {how}, which rounds differently from a single"
            " process; expected a trial trained alone, whose numbers come out the same to the last digit"
        )


def _settings(row: dict[str, Any], where: str) -> tuple[Experiment, TrialSpec]:
    """Read a trial's experiment and specification from its row."""
    try:
        settings = json.loads(row["settings"])
        experiment = Experiment.model_validate(settings["experiment"])
        assignment = Assignment(row["method"], settings["number"], settings["hyperparameters"], row["phase"])
        return experiment, experiment.trial_spec(assignment)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ExperimentError(
            f"{where}: settings of {row['trial_id']}: not those of a trial of this version: {error!r}"
        ) from None


def _device_of(row: Mapping[str, Any], run: str) -> torch.device:
    """Return the kind of device that trained a recorded trial; another kind gives other numbers."""
    kind = str(row["device"]).partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ExperimentError(f"{run}: device of {row['trial_id']}: expected cpu or cuda, got {kind!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ExperimentError(
            f"{run}: {row['trial_id']} was trained on {row['device']}, and PyTorch finds no GPU"
            " here; expected a machine with one"
        )
    return torch.device(kind)


def _recorded(run: str, trial_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        results = load(run)
    except (FileNotFoundError, ResultSetError, StorageError) as error:
        raise ExperimentError(str(error)) from None
    trials = results.trials[results.trials.trial_id == trial_id]
    if trials.empty:
        known = ", ".join(results.trials.trial_id)
        raise ExperimentError(f"{run}: no trial {trial_id!r}; it has {known}")
    curve = results.metrics[results.metrics.trial_id == trial_id].sort_values("evaluation")
    if curve.empty:
        raise ExperimentError(f"{run}: {trial_id} has no evaluation to compare with")
    return trials.iloc[0].to_dict(), curve.to_dict("records")
