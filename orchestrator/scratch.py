"""Where workers of a run at a URI keep their trial's files: on their node, with copies at the URI."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from results.remote import RemoteDirectory, patiently, reason
from trainables.state import PROGRESS_FILE, TENSORS_FILE

PATIENCE_SECONDS = 3600.0
"""How long a trial waits for storage that answers with errors."""

KEPT_STATES = 2
"""States of a trial that stay at the URI: the journal, which the driver uploads, may be one behind."""


class Scratch:
    """One process's part of the run directory: ``states/`` and ``checkpoints/`` of the trial it trains.

    Arguments:
        uri: of the run.
    """

    def __init__(self, uri: str) -> None:
        runs = Path(tempfile.gettempdir()) / f"finetune-comparison-{os.getuid()}"
        runs.mkdir(mode=0o700, exist_ok=True)
        _remove_orphans(runs)
        self.directory = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=runs))
        self._remote = RemoteDirectory(uri)
        self._states: list[str] = []  # of the trial, at the URI, in order

    def begin(self, trial_id: str) -> None:
        """Fetch the states that another process has left of a trial."""
        self.clear()
        states = self._remote.child(f"states/{trial_id}")
        files: list[str] = []
        _wait_for(lambda: files.extend(states.files()))
        for file in files:
            # A state is complete once its progress, which is copied last, is there.
            if f"{Path(file).parent}/{PROGRESS_FILE}" in files:
                _download(states, file, self.directory / "states" / trial_id / file)
        self._states = sorted({str(Path(file).parent) for file in files})

    def saved(self, trial_id: str) -> None:
        """Copy the newest state of a trial to the URI, and remove old ones there."""
        states = self._remote.child(f"states/{trial_id}")
        newest = max((self.directory / "states" / trial_id).iterdir())
        for name in (TENSORS_FILE, PROGRESS_FILE):
            _upload(newest / name, states, f"{newest.name}/{name}")
        self._states = [*(name for name in self._states if name != newest.name), newest.name]
        while len(self._states) > KEPT_STATES:
            _remove(states, self._states.pop(0))

    def put(self, directory: Path) -> None:
        """Copy a trial's best checkpoint to the URI."""
        there = self._remote.child(directory.relative_to(self.directory).as_posix())
        _wait_for(lambda: there.put(directory))

    def get(self, directory: Path) -> None:
        """Fetch a trial's best checkpoint if another process has written it."""
        if not directory.exists():
            there = self._remote.child(directory.relative_to(self.directory).as_posix())
            _wait_for(lambda: there.get(directory))

    def clear(self) -> None:
        """Remove the last trial's files from this node."""
        for name in ("states", "checkpoints"):
            shutil.rmtree(self.directory / name, ignore_errors=True)


def _download(remote: RemoteDirectory, name: str, local: Path) -> None:
    _wait_for(lambda: remote.download(name, local))


def _upload(local: Path, remote: RemoteDirectory, name: str) -> None:
    _wait_for(lambda: remote.upload(local, name))


def _remove(remote: RemoteDirectory, name: str) -> None:
    _wait_for(lambda: remote.remove_directory(name))


def _wait_for(operation: Callable[[], None]) -> None:
    patiently(operation, PATIENCE_SECONDS, _say)


def _say(error: BaseException | None) -> None:
    print(f"storage: {reason(error)}; trying again" if error else "storage: works again", flush=True)


def _remove_orphans(runs: Path) -> None:
    """Remove the files of processes that were killed."""
    for path in runs.iterdir():
        pid = path.name.partition("-")[0]
        if not pid.isdecimal():
            continue  # not ours
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass
