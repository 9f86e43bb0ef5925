"""Creates run directories, and gives each one driver at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment
from orchestrator.storage import TAKEN
from results.store import replace_file

LOCK_FILE = ".driver.lock"


def make_run_directory(experiment: Experiment, where: str) -> None:
    """Make the experiment's directory, which has its ``experiment.json`` from the start.

    Raises:
        ExperimentError: if it exists already, or cannot be made.
    """
    directory = experiment.run_directory
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.new")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ExperimentError(f"storage: cannot be written: {error}", where=where) from None
    write_experiment(experiment, temporary)
    try:
        temporary.rename(directory)
    except OSError:  # not empty
        shutil.rmtree(temporary)
        raise ExperimentError(f"name: {directory} {TAKEN}", where=where) from None


def write_experiment(experiment: Experiment, directory: Path) -> None:
    """Write, atomically, the experiment that a run directory belongs to."""
    replace_file(directory / "experiment.json", f"{experiment.model_dump_json(indent=2)}\n".encode())


@contextmanager
def only_driver(directory: Path) -> Iterator[None]:
    """Lock a run directory while this process runs its trials; if it dies, the lock is released.

    Raises:
        ExperimentError: if another process holds the lock, or the directory cannot be written.
    """
    lock = FileLock(directory / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ExperimentError(
            f"{directory}: another process is running it; expected one at a time: wait for it, or end it"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise ExperimentError(f"{directory}: cannot be written: {error}") from None
    try:
        yield
    finally:
        lock.release()
