"""Fetches a run from its URI, so that this machine can continue it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.errors import ExperimentError
from orchestrator.mirror import (
    AT_ONCE,
    DRIVER_FILE,
    TOKEN_FILE,
    WORKERS_OWN,
    Stamp,
    find_files,
    read_driver,
)
from orchestrator.states import evaluation_of
from results.errors import ResultSetError
from results.remote import RemoteDirectory, StorageError, reason
from results.schema import UNFINISHED
from results.store import read_journal

SILENT_SECONDS = 90.0
"""A driver without a sign of life for this long is gone."""


def fetch(uri: str, directory: Path, tidies: bool = True) -> dict[str, Stamp | None]:
    """Make the local copy of a run that is to be continued.

    If this machine ran it last, its own copy is the newest, and stays. Of the workers' states only the names
    are fetched, as directories in ``states/``. ``tidies`` removes from the URI what a driver that died still
    had to remove, and states that are newer than their trial's record.

    Returns the files that are at the URI, with their stamps in the copy; None for one that may differ. If no
    run is there, nothing is touched.

    Raises:
        ExperimentError: if the storage cannot be read, or another machine runs it.
    """
    try:
        remote = RemoteDirectory(uri)
        _check_silent(directory, remote)
        own = _is_newest(directory, remote)
        if not own and not remote.has("experiment.json"):
            return {}
        files = remote.files()
        copied = [name for name in files if name.partition("/")[0] not in (*WORKERS_OWN, DRIVER_FILE)]
        if not own:
            _clear(directory)
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda name: remote.download(name, directory / name), copied))
        for name in _tidy(directory, files):
            if tidies:
                remote.remove_directory(name)
    except ResultSetError as error:
        raise ExperimentError(str(error)) from None
    except (StorageError, OSError) as error:
        raise ExperimentError(f"{uri}: cannot be read: {reason(error)}") from None
    return dict.fromkeys(copied) if own else dict(find_files(directory))


def _is_newest(directory: Path, remote: RemoteDirectory) -> bool:
    """Say whether a local copy is the last driver's, or one whose run never reached the storage."""
    token = directory / TOKEN_FILE
    said = read_driver(remote)
    return token.exists() and (said["token"] == token.read_text() if said else not remote.exists())


def _clear(directory: Path) -> None:
    """Empty a local copy, except for the lock that is held."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.endswith(".lock"):
            path.unlink()


def _check_silent(directory: Path, remote: RemoteDirectory) -> None:
    """Refuse a run whose driver runs on another machine; on this one, the copy's lock tells."""
    said = read_driver(remote)
    if said is None or (said["host"], said["copy"]) == (socket.gethostname(), str(directory)):
        return
    seconds = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(said["at"])).total_seconds())
    if seconds < SILENT_SECONDS:
        raise ExperimentError(
            f"{remote}: {said['host']} was running it {seconds:.0f} s ago; expected one driver at a time:"
            f" end it, or if it is gone, try again in {SILENT_SECONDS - seconds:.0f} s"
        )


def _tidy(directory: Path, files: Iterable[str]) -> list[str]:
    """List the states that stay as directories, and return what workers wrote there that no record knows."""
    shutil.rmtree(directory / "states", ignore_errors=True)
    records = {str(record.trial["trial_id"]): record for record in read_journal(directory)}
    parts = [part for file in files if len(part := file.split("/")) > 2]
    unknown = []
    for trial_id, name in sorted({(part[1], part[2]) for part in parts if part[0] == "states"}):
        record, evaluation = records.get(trial_id), evaluation_of(name)
        goes_on = record is not None and record.trial["status"] in UNFINISHED
        if record and goes_on and evaluation is not None and evaluation <= len(record.metrics):
            (directory / "states" / trial_id / name).mkdir(parents=True)
        else:
            unknown.append(f"states/{trial_id}/{name}")
    for trial_id in sorted({part[1] for part in parts if part[0] == "checkpoints"}):
        record = records.get(trial_id)
        if record is None or (record.trial["status"] not in UNFINISHED and not record.checkpoints):
            unknown.append(f"checkpoints/{trial_id}")
    return unknown
