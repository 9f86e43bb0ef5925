"""Checks that a run's storage can be used, before anything starts."""

from __future__ import annotations

import os

from orchestrator.experiment import Experiment
from results.remote import RemoteDirectory, StorageError, reason
from trainables.errors import InputError

TAKEN = "exists already; choose another --name, remove it, or continue that run with --resume"
"""What is wrong with the name of a new run whose directory is there."""


def storage_problems(experiment: Experiment) -> list[InputError]:
    """Return why this machine cannot write to the experiment's URI, if it has one and cannot."""
    if experiment.uri is None:
        return []
    try:
        RemoteDirectory(experiment.storage).probe()
    except StorageError as error:
        return [InputError("storage", str(error))]
    return []


def is_taken(experiment: Experiment) -> bool:
    """Say whether the experiment's directory exists already.

    Raises:
        InputError: if its storage cannot be read or is not a directory.
    """
    try:
        experiment.run_directory.lstat()
        return True
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError("storage", f"{error}; expected a directory of run directories") from None
    if experiment.uri is None:
        return False
    try:
        return RemoteDirectory(experiment.uri).exists()
    except StorageError as error:
        raise InputError("storage", str(error)) from None
    except Exception as error:  # each of fsspec's filesystems has errors of its own
        raise InputError("storage", f"{experiment.uri}: {reason(error)}") from None


def run_directory_problems(experiment: Experiment) -> list[InputError]:
    """Return why a new run's directory cannot be made, if so: it exists, or its storage cannot be used."""
    if problems := storage_problems(experiment):
        return problems
    try:
        if is_taken(experiment):
            taken = experiment.location
            if experiment.uri and experiment.run_directory.exists():
                taken = f"{experiment.run_directory}, a driver's copy of {taken},"
            return [InputError("name", f"{taken} {TAKEN}")]
    except InputError as error:
        return [error]
    parent = next(one for one in experiment.run_directory.parents if one.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        return [InputError("storage", f"{parent} cannot be written to; expected one that can")]
    return []
