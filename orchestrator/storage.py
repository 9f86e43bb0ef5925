"""Checks that a run's storage can be used, before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment
from results.remote import RemoteDirectory, StorageError, reason


def check_storage(experiment: Experiment, where: str) -> None:
    """Refuse a storage URI that this machine cannot write to.

    Raises:
        ExperimentError: saying why.
    """
    if experiment.uri is None:
        return
    try:
        RemoteDirectory(experiment.storage).probe()
    except StorageError as error:
        raise ExperimentError([f"{where}: storage: {error}"]) from None


def is_taken(experiment: Experiment, where: str = "experiment") -> bool:
    """Say whether the experiment's directory exists already.

    Raises:
        ExperimentError: if its storage cannot be read or is not a directory.
    """
    try:
        experiment.run_directory.lstat()
        return True
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ExperimentError(
            [f"{where}: storage: {error}; expected a directory of run directories"]
        ) from None
    if experiment.uri is None:
        return False
    try:
        return RemoteDirectory(experiment.uri).exists()
    except StorageError as error:
        raise ExperimentError([f"{where}: storage: {error}"]) from None
    except Exception as error:  # each of fsspec's filesystems has errors of its own
        raise ExperimentError([f"{where}: storage: {experiment.uri}: {reason(error)}"]) from None


def check_run_directory(experiment: Experiment, where: str = "experiment") -> None:
    """Refuse a run directory that exists, or cannot be made.

    Raises:
        ExperimentError: saying which.
    """
    if is_taken(experiment, where):
        taken = experiment.location
        if experiment.uri and experiment.run_directory.exists():
            taken = f"{experiment.run_directory}, a driver's copy of {taken},"
        raise already_there(taken, where)
    parent = next(one for one in experiment.run_directory.parents if one.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExperimentError([f"{where}: storage: {parent} cannot be written to; expected one that can"])


def already_there(run: Path | str, where: str) -> ExperimentError:
    """Return the error of a new run whose place is taken."""
    return ExperimentError([f"{where}: name: {run} exists already; choose another --name or remove it"])
