"""Whether a run's storage can be used, asked before anything starts."""

from __future__ import annotations

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
    """Say whether the experiment's directory is there already.

    Raises:
        ExperimentError: if its storage cannot be read, or is none.
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
    except Exception as error:  # each filesystem of fsspec's has its own
        raise ExperimentError([f"{where}: storage: {experiment.uri}: {reason(error)}"]) from None
