"""Runs at a URI: the driver works on a local copy, and a thread uploads what changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Final, NamedTuple

from orchestrator.errors import ExperimentError
from orchestrator.history import TrialHistory
from orchestrator.storage import TAKEN
from results.remote import FIRST_PAUSE, LONGEST_PAUSE, RemoteDirectory, StorageError, patiently, reason
from results.store import TRIALS_FILE

COPY_EVERY_SECONDS = 1.0
LARGE_BYTES, COPY_SHARE = 1 << 20, 0.05
"""Larger files, such as logs, are uploaded less often if that would take more than this share of the time."""
BEAT_SECONDS = 20.0
"""Time between a driver's signs of life."""
CLAIM_SECONDS = 60.0
"""How long a run waits for its storage before it starts."""
AT_ONCE = 8
"""Files that are uploaded or downloaded at once."""

DRIVER_FILE: Final = "driver.json"
"""At the URI: which driver runs there, with its last sign of life."""
TOKEN_FILE: Final = ".token"
"""In the local copy: the token of the driver whose copy it is."""
WORKERS_OWN: Final = ("checkpoints", "states")
"""Directories of a run that workers write, which are only at the URI."""
TUNES_OWN: Final = "ray"
"""The directory of Tune's own files, which stay here because nobody else needs them."""


class Stamp(NamedTuple):
    """Attributes of a file, one of which changes when the file does."""

    modified: int  # ns
    size: int
    inode: int


class Mirror:
    """Upload what changes in a run's local copy, while it runs.

    An outage holds up nothing: what changes meanwhile is uploaded when it ends. What the run drops is removed
    after all changes are uploaded, so that no record names what is no longer there.

    Arguments:
        directory: the local copy.
        uri: where the run is stored.
        known: for a run that continues, the files at the URI and their stamps in the copy, as
            :func:`orchestrator.fetch.fetch` returns them; None for a new run.
    """

    def __init__(self, directory: Path, uri: str, known: Mapping[str, Stamp | None] | None = None) -> None:
        self._directory = directory
        self._remote = RemoteDirectory(uri)
        self._is_new = known is None
        self._known = dict(known or {})
        self._due: dict[str, float] = {}  # when each file may be uploaded again
        self._dropped: list[str] = []
        self._lock = Lock()
        self._done = Event()
        self._token = uuid.uuid4().hex
        self._beaten_at = 0.0
        self._is_failing = False
        self._is_taken = False
        self._thread = Thread(target=self._follow, name="mirror", daemon=True)

    def start(self, say: Callable[[str], None]) -> None:
        """Claim the run and start to upload.

        Arguments:
            say: is told when the storage begins to fail, and when it works again.

        Raises:
            ExperimentError: if the storage cannot be written, or has another run where a new one should be.
        """
        self._say = say
        try:
            if self._is_new and patiently(self._remote.exists, CLAIM_SECONDS):
                shutil.rmtree(self._directory)
                raise ExperimentError(f"name: {self._remote} {TAKEN}")
            patiently(self._beat, CLAIM_SECONDS)
        except OSError as error:
            raise ExperimentError(f"{self._remote}: cannot be written: {error}") from None
        (self._directory / TOKEN_FILE).write_text(self._token)
        self._thread.start()

    def drop(self, name: str) -> None:
        """Have a directory of the workers, such as ``checkpoints/lora-003``, removed from the URI."""
        with self._lock:
            self._dropped.append(name)

    def changed(self, trial: TrialHistory) -> None:
        """Keep the directories of a trial that starts over, even if they were to be dropped."""
        if trial.status == "running" and self._dropped:
            with self._lock:
                self._dropped = [name for name in self._dropped if Path(name).name != trial.spec.trial_id]

    def _is_dropped(self, name: str) -> bool:
        with self._lock:
            return name in self._dropped

    def finish(self, say: Callable[[str], None]) -> bool:
        """Upload the rest, however long it takes, and remove the local copy; say whether all is uploaded.

        If interrupted, leave the copy, from which ``--resume`` continues.
        """
        if not self._beaten_at:
            return False  # it was not started
        self._say = say
        try:
            self._done.set()
            self._thread.join()
            self._is_failing = False  # an outage is reported again, in other words
            pause = FIRST_PAUSE
            while not self._is_taken and not self._try():
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            if self._is_taken:
                return False
            patiently(lambda: self._remote.remove(DRIVER_FILE), CLAIM_SECONDS)
        except (KeyboardInterrupt, OSError):
            say(
                f"not everything is at {self._remote} yet; the rest is in {self._directory}, and"
                f" --resume {self._remote} uploads it"
            )
            return False
        shutil.rmtree(self._directory)
        with suppress(OSError):
            self._directory.parent.rmdir()
        return True

    def _follow(self) -> None:
        pause = COPY_EVERY_SECONDS
        while not self._done.wait(pause) and not self._is_taken:
            pause = COPY_EVERY_SECONDS if self._try() else min(2 * pause, LONGEST_PAUSE)

    def _try(self) -> bool:
        """Upload once; say whether that worked, and report when it begins to fail or works again."""
        try:
            self._beat()
            if not self._is_taken:
                self.copy()
        except Exception as error:  # each of fsspec's filesystems has errors of its own
            if not self._is_failing:
                until_then = (
                    f"waiting until it can; Ctrl-C stops waiting and leaves the rest in {self._directory}"
                    if self._done.is_set()
                    else f"the run goes on, and what it writes is kept in {self._directory} until it can"
                )
                self._say(f"{self._remote} cannot be written: {reason(error)}; {until_then}")
            self._is_failing = True
            return False
        if self._is_failing:
            self._say(f"{self._remote} can be written again")
        self._is_failing = False
        return True

    def copy(self) -> None:
        """Upload what is new or changed, and remove what is gone."""
        with self._lock:
            dropped = list(self._dropped)
        found = dict(find_files(self._directory))
        changed = [name for name, stamp in found.items() if self._known.get(name) != stamp]
        now = time.monotonic()
        is_last = self._done.is_set()
        due = [
            name
            for name in changed
            if is_last or found[name].size < LARGE_BYTES or self._due.get(name, now) <= now
        ]
        # The table of trials comes last, as in a snapshot: it has no trial without its other rows.
        last = [name for name in due if name == TRIALS_FILE]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for names in ([name for name in due if name not in last], last):
                for name in pool.map(self._upload, names):
                    self._known[name] = found[name]
            gone = [name for name in self._known if name not in found]
            for name in pool.map(self._remove, gone):
                del self._known[name]
            if len(due) < len(changed):
                return  # files that are not uploaded yet may name what is to be dropped
            list(pool.map(self._remote.remove_directory, filter(self._is_dropped, dropped)))
        with self._lock:
            self._dropped = [name for name in self._dropped if name not in dropped]

    def _upload(self, name: str) -> str:
        started = time.monotonic()
        try:
            self._remote.upload(self._directory / name, name)
        except OSError:
            if (self._directory / name).exists():  # else the next call removes it there
                raise
        ended = time.monotonic()
        self._due[name] = ended + (ended - started) / COPY_SHARE
        return name

    def _remove(self, name: str) -> str:
        self._remote.remove(name)
        return name

    def _beat(self) -> None:
        """Give a sign of life; end the run if another driver has taken it over."""
        if self._beaten_at and time.monotonic() - self._beaten_at < BEAT_SECONDS:
            return
        other = read_driver(self._remote)
        if self._beaten_at and other and other["token"] != self._token:
            self._is_taken = True
            self._say(f"{self._remote}: {other['host']} has taken over this run; it ends here")
            os.kill(os.getpid(), signal.SIGINT)
            return
        said = {
            "token": self._token,
            "host": socket.gethostname(),
            "copy": str(self._directory),
            "at": datetime.now(UTC).isoformat(),
        }
        self._remote.write(DRIVER_FILE, json.dumps(said).encode())
        self._beaten_at = time.monotonic()


def find_files(directory: Path) -> Iterator[tuple[str, Stamp]]:
    """Find the files to upload: none whose name begins with a dot, as those of unfinished ones do."""
    for above, directories, files in os.walk(directory):
        is_top = Path(above) == directory
        skipped = (*WORKERS_OWN, TUNES_OWN) if is_top else ()
        directories[:] = [name for name in directories if not name.startswith(".") and name not in skipped]
        for name in files:
            if name.startswith(".") or (is_top and name == DRIVER_FILE):
                continue
            file = Path(above) / name
            try:
                status = file.stat()
            except FileNotFoundError:
                continue
            stamp = Stamp(status.st_mtime_ns, status.st_size, status.st_ino)
            yield file.relative_to(directory).as_posix(), stamp


def read_driver(remote: RemoteDirectory) -> dict[str, str] | None:
    """Return what the last driver has said there: its token, host, copy and last sign of life.

    Raises:
        StorageError: if it is not what a driver says, or cannot be read.
    """
    try:
        said = json.loads(remote.read(DRIVER_FILE))
        return {name: str(said[name]) for name in ("token", "host", "copy", "at")}
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise StorageError(
            f"{remote}/{DRIVER_FILE}: not what a driver writes; remove it if no driver runs there"
        ) from None
