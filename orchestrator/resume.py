"""Continue a run from its journal: what was finished is kept, the rest runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment
from orchestrator.rows import TrialHistory, trial_history
from results.store import read_journal

ENDED = ("completed", "stopped", "diverged", "out_of_memory", "failed")
"""Statuses of trials that are not run again."""


def read_run(directory: Path) -> Experiment:
    """Read the experiment that a run directory belongs to.

    Raises:
        ExperimentError: if there is none, or it was moved to another name.
    """
    file = directory / "experiment.json"
    try:
        experiment = Experiment.model_validate_json(file.read_text())
    except FileNotFoundError:
        raise ExperimentError([f"{directory}: no experiment.json; expected a run directory"]) from None
    except ValidationError as error:
        raise ExperimentError([f"{file}: not an experiment of this version: {error}"]) from None
    where = directory.absolute()
    if where.name != experiment.name:
        raise ExperimentError(
            [f"{directory}: expected a directory named {experiment.name}, as its experiment"]
        )
    return experiment.model_copy(update={"storage": str(where.parent)})


def finished_trials(
    directory: Path, experiment: Experiment, labels: Sequence[str]
) -> tuple[list[TrialHistory], list[Mapping[str, Any]]]:
    """Return the trials of a run that have ended, and their rows."""
    records = [record for record in read_journal(directory) if record.trial["status"] in ENDED]
    return [trial_history(experiment, record, labels) for record in records], [
        record.trial for record in records
    ]
