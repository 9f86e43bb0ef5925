"""Train one recorded trial again from its row alone and say whether it came out the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Assignment, Experiment
from orchestrator.prepare import check_fingerprints, prepare
from results import load
from results.errors import ResultSetError
from results.remote import StorageError
from trainables.trial import TrialSpec, run_trial

COMPARED = ("train_loss", "validation_loss", "validation_accuracy", "validation_macro_f1", "tokens")


@dataclass(frozen=True)
class Reproduction:
    """The outcome: one line per difference, none when the numbers are identical."""

    evaluations: int
    differences: tuple[str, ...]


def reproduce(run: str, trial_id: str, report: Callable[[str], None], trusts: bool = False) -> Reproduction:
    """Train the trial again, as many evaluations as were recorded, and compare every one exactly.

    Arguments:
        run: its directory, a path or a URI.
        trial_id: which of its trials.
        report: is told what takes long.
        trusts: run Python code that comes with its model. That its settings say so is not enough: somebody
            may have sent the result set.

    Raises:
        ExperimentError: if there is no such run or trial, its data or base model is another one now, or it
            was trained on a GPU and here is none.
    """
    row, curve = _recorded(run, trial_id)
    experiment, spec = _settings(row, run)
    if experiment.model.trust_remote_code and not trusts:
        raise ExperimentError(
            [
                f"{run}: {experiment.model.path} brings Python code that would run here, which"
                " whoever made this run trusted; if you do, too: --set model.trust_remote_code=true"
            ]
        )
    prepared = prepare(experiment, report)
    check_fingerprints(row, prepared, run)
    trial = run_trial(spec, prepared.data, prepared.base, None, device=_device_of(row, run))
    points = islice(trial, len(curve))
    differences = [
        f"evaluation {point.evaluation}: {column} was {recorded[column]!r}, is {getattr(point, column)!r}"
        for recorded, point in zip(curve, points, strict=True)
        for column in COMPARED
        if recorded[column] != getattr(point, column)
    ]
    return Reproduction(len(curve), tuple(differences))


def _settings(row: dict[str, Any], where: str) -> tuple[Experiment, TrialSpec]:
    """Read how a trial was made from its row."""
    try:
        settings = json.loads(row["settings"])
        experiment = Experiment.model_validate(settings["experiment"])
        assignment = Assignment(row["method"], settings["number"], settings["hyperparameters"], row["phase"])
        return experiment, experiment.trial_spec(assignment)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ExperimentError(
            [f"{where}: settings of {row['trial_id']}: not those of a trial of this version: {error!r}"]
        ) from None


def _device_of(row: Mapping[str, Any], run: str) -> torch.device:
    """Return the kind of device that trained a recorded trial; another kind gives other numbers."""
    kind = str(row["device"]).partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ExperimentError([f"{run}: device of {row['trial_id']}: expected cpu or cuda, got {kind!r}"])
    if kind == "cuda" and not torch.cuda.is_available():
        raise ExperimentError(
            [
                f"{run}: {row['trial_id']} was trained on {row['device']}, and PyTorch finds no GPU"
                " here; expected a machine with one"
            ]
        )
    return torch.device(kind)


def _recorded(run: str, trial_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    try:
        results = load(run)
    except (FileNotFoundError, ResultSetError, StorageError) as error:
        raise ExperimentError([str(error)]) from None
    trials = results.trials[results.trials.trial_id == trial_id]
    if trials.empty:
        known = ", ".join(results.trials.trial_id)
        raise ExperimentError([f"{run}: no trial {trial_id!r}; it has {known}"])
    curve = results.metrics[results.metrics.trial_id == trial_id].sort_values("evaluation")
    if curve.empty:
        raise ExperimentError([f"{run}: {trial_id} has no evaluation to compare with"])
    return trials.iloc[0].to_dict(), curve.to_dict("records")
