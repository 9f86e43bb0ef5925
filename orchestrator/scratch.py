"""Where the workers of a run whose storage is a URI keep their trial's files: on their node, and at the URI."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from results.remote import RemoteDirectory, patiently, reason
from trainables.state import PROGRESS_FILE, TENSORS_FILE

PATIENCE_SECONDS = 3600.0
"""How long a trial waits for a storage that answers with errors."""

KEPT_STATES = 2
"""States of a trial that stay there: the journal, which is carried over apart, may be one evaluation behind."""


class Scratch:
    """What one process has of the run directory: ``states/`` and ``checkpoints/`` of the trial it trains.

    Arguments:
        uri: of the run.
    """

    def __init__(self, uri: str) -> None:
        runs = Path(tempfile.gettempdir()) / f"finetune-comparison-{os.getuid()}"
        runs.mkdir(mode=0o700, exist_ok=True)
        _remove_orphans(runs)
        self.directory = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=runs))
        self._remote = RemoteDirectory(uri)

    def begin(self, trial_id: str) -> None:
        """Fetch what another process has left of a trial: its states."""
        self.clear()
        states = self._remote.child(f"states/{trial_id}")
        names = patiently(states.files, PATIENCE_SECONDS, _say)
        for name in names:
            # A state is whole once its progress is there, which is copied last.
            if f"{Path(name).parent}/{PROGRESS_FILE}" in names:
                local = self.directory / "states" / trial_id / name
                patiently(lambda n=name, to=local: states.download(n, to), PATIENCE_SECONDS, _say)  # type: ignore[misc]

    def saved(self, trial_id: str) -> None:
        """Copy the newest state of a trial to the URI; older ones go."""
        states = self._remote.child(f"states/{trial_id}")
        newest = max((self.directory / "states" / trial_id).iterdir())
        for name in (TENSORS_FILE, PROGRESS_FILE):
            patiently(lambda n=name: states.upload(newest / n, f"{newest.name}/{n}"), PATIENCE_SECONDS, _say)  # type: ignore[misc]
        patiently(lambda: _remove_all(states, states.directories()[:-KEPT_STATES]), PATIENCE_SECONDS, _say)

    def put(self, directory: Path) -> None:
        """Copy a trial's best checkpoint to the URI."""
        there = self._remote.child(directory.relative_to(self.directory).as_posix())
        patiently(lambda: there.put(directory), PATIENCE_SECONDS, _say)

    def get(self, directory: Path) -> None:
        """Fetch a trial's best checkpoint, where another process has written it."""
        if not directory.exists():
            there = self._remote.child(directory.relative_to(self.directory).as_posix())
            patiently(lambda: there.get(directory), PATIENCE_SECONDS, _say)

    def clear(self) -> None:
        """Remove what this node has of the last trial."""
        for name in ("states", "checkpoints"):
            shutil.rmtree(self.directory / name, ignore_errors=True)


def _remove_all(directory: RemoteDirectory, names: Iterable[str]) -> None:
    for name in names:
        directory.remove(name)


def _remove_orphans(runs: Path) -> None:
    """Remove what processes have left that were killed."""
    for path in runs.iterdir():
        pid = int(path.name.partition("-")[0])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass


def _say(error: BaseException | None) -> None:
    print(f"storage: {reason(error)}; trying again" if error else "storage: works again", flush=True)
