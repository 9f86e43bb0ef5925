"""The Tune callback that journals what trials report and keeps the best checkpoints."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, get_args

from ray import tune
from ray.tune.experiment import Trial

from orchestrator.experiment import Assignment, Experiment, Phase
from orchestrator.history import NOTHING, Earlier, TrialHistory, best_of
from orchestrator.lost_workers import OUT_OF_MEMORY
from orchestrator.reports import DAMAGE, ERROR, POINT, STATUS
from orchestrator.rows import Provenance, trial_record
from orchestrator.secrets import redact
from results.schema import Status
from results.store import Snapshots, drop_checkpoint, remove_record, write_record

SNAPSHOT_EVERY_SECONDS = 2.0
SNAPSHOT_SHARE = 0.05
"""Snapshots are rarer if they would take more than this share of the time."""
WRITE_AGAIN_SECONDS = 1.0
"""Pause between attempts to write to a disk that is full, or storage that does not answer."""


class Watcher(Protocol):
    """What is told of every change of a trial: the terminal, the metrics, the study journal, the mirror."""

    def changed(self, trial: TrialHistory) -> None: ...


class Recorder(tune.Callback):
    """Journal every report at once, snapshot the tables now and then, and drop checkpoints that lost.

    Arguments:
        experiment: what runs.
        provenance: what every row has in common.
        directory: the run directory.
        watchers: are told of every change.
        say: is told what the user should know at once.
        earlier: trials of the run that an earlier process started.
        drop: removes ``states/TRIAL`` or ``checkpoints/TRIAL`` where workers write them, if that is not the
            run directory.
    """

    def __init__(
        self,
        experiment: Experiment,
        provenance: Provenance,
        directory: Path,
        watchers: Sequence[Watcher],
        say: Callable[[str], None],
        earlier: Earlier = NOTHING,
        drop: Callable[[str], None] | None = None,
    ) -> None:
        self._experiment = experiment
        self._provenance = provenance
        self._directory = directory
        self._watchers = watchers
        self._say = say
        self._drop = drop or self._drop_here
        self._snapshots = Snapshots(directory, experiment.methods)
        self._next_snapshot = 0.0
        self._kept_at: dict[str, float] = {}  # when the progress of a running trial was last saved
        self._unfinished = {history.spec.trial_id: history for history in earlier.unfinished}
        self.trials = {history.spec.trial_id: history for history in earlier.finished}
        # Ended trials that have checkpoints, by method and phase: winners, and those not compared yet.
        self._keepers: dict[tuple[str, Phase], set[str]] = defaultdict(set)
        for history in self.trials.values():
            self._keep(history)
        for state in (directory / "states").glob("*"):  # left by a driver that died as the trial ended
            if state.name in self.trials:
                self._drop(f"states/{state.name}")

    def __getstate__(self) -> dict[str, Any]:
        """Keep out of Tune's state files: a run is continued from its journal."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        assignment = Assignment.from_config(trial.config)
        self._kept_at[assignment.trial_id] = time.monotonic()
        if assignment.trial_id not in self.trials:  # else another worker continues it
            started = TrialHistory(
                assignment, self._experiment.trial_spec(assignment), started_at=datetime.now(UTC)
            )
            self._update(self._unfinished.pop(assignment.trial_id, started))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        trial_id = Assignment.from_config(trial.config).trial_id
        if trial_id not in self.trials:
            self.on_trial_start(0, [], trial)
        history = self.trials[trial_id]
        lost = time.monotonic() - self._kept_at[trial_id]
        self._update(replace(history, retries=history.retries + 1, lost_seconds=history.lost_seconds + lost))
        point = len(history.curve)
        self._say(
            f"{trial_id}: {_error_of(trial).splitlines()[0]}; it goes on from"
            f" {f'evaluation {point}' if point else 'its beginning'} in another process, try"
            f" {trial.num_failures + 1} of {self._experiment.resources.max_failures + 1}"
        )

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if POINT not in result:
            return
        history, point = self.trials[Assignment.from_config(trial.config).trial_id], result[POINT]
        self._kept_at[history.spec.trial_id] = time.monotonic()  # its worker saves it before it continues
        if DAMAGE in result:
            start = f"evaluation {point.evaluation - 1}" if point.evaluation > 1 else "its beginning"
            self._say(f"{history.spec.trial_id}: {result[DAMAGE]}; it went on from {start}")
        # A trial that continues from its last state may repeat an evaluation.
        before = [known for known in history.curve if known.evaluation < point.evaluation]
        self._update(replace(history, curve=(*before, point), node=str(result.get("hostname"))))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        result = trial.last_result or {}
        if STATUS in result:
            self._end(trial, result[STATUS], _clean(result[ERROR]))
        else:
            self._end(trial, "completed" if self._is_whole(trial) else "stopped", None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = _error_of(trial)
        self._end(trial, _death(error), error)

    def of_phase(self, phase: Phase) -> list[TrialHistory]:
        """Return the trials of a phase that are running or have ended."""
        return [trial for trial in self.trials.values() if trial.assignment.phase == phase]

    def unfinished(self, phase: Phase) -> list[TrialHistory]:
        """Return the trials of a phase that an earlier process began and that have not continued yet."""
        return [trial for trial in self._unfinished.values() if trial.assignment.phase == phase]

    def forget(self, trials: Iterable[TrialHistory]) -> None:
        """Remove trials, with their records, states and checkpoints."""
        for trial in trials:
            key = trial.spec.trial_id
            self._drop(f"states/{key}")
            self._drop(f"checkpoints/{key}")
            remove_record(self._directory, key)
            self.trials.pop(key, None)
            self._unfinished.pop(key, None)
            self._keepers[trial.spec.method, trial.assignment.phase].discard(key)

    def close(self) -> None:
        """End trials that were still running as interrupted and write the last snapshot."""
        for key, history in list(self.trials.items()):
            if history.status == "running":
                self.trials[key] = replace(history, status="interrupted", ended_at=datetime.now(UTC))
                self._journal(self.trials[key])
                self._tell(self.trials[key])
        for method in self._experiment.methods:
            for phase in get_args(Phase):
                self._drop_losers(method, phase)
        self._persist(self._snapshots.write)

    def _is_whole(self, trial: Trial) -> bool:
        curve = self.trials[Assignment.from_config(trial.config).trial_id].curve
        return bool(curve) and curve[-1].is_last

    def _end(self, trial: Trial, status: Status, error: str | None) -> None:
        # A trial whose worker died before it began was never started.
        trial_id = Assignment.from_config(trial.config).trial_id
        if trial_id not in self.trials:
            self.on_trial_start(0, [], trial)
        history = self.trials[trial_id]
        self._update(replace(history, status=status, error=error, ended_at=datetime.now(UTC)))
        self._drop(f"states/{trial_id}")
        self._keep(self.trials[trial_id])
        self._drop_losers(history.spec.method, history.assignment.phase)

    def _update(self, history: TrialHistory) -> None:
        self.trials[history.spec.trial_id] = history
        self._journal(history)
        started = time.monotonic()
        if started >= self._next_snapshot:
            self._persist(self._snapshots.write)
            ended = time.monotonic()
            self._next_snapshot = ended + max(SNAPSHOT_EVERY_SECONDS, (ended - started) / SNAPSHOT_SHARE)
        self._tell(history)

    def _tell(self, history: TrialHistory) -> None:
        for watcher in self._watchers:
            watcher.changed(history)

    def _journal(self, history: TrialHistory) -> None:
        record = trial_record(self._experiment, self._provenance, history)
        self._persist(partial(write_record, self._directory, record))
        self._snapshots.changed(history.spec.trial_id)

    def _persist(self, write: Callable[[], None]) -> None:
        """Retry a write until it succeeds; trials wait meanwhile, so that none ends without a record."""
        is_failing = False
        while True:
            try:
                write()
            except OSError as error:
                if not is_failing:
                    said = f"cannot be written: {error.strerror or error}; the run waits until it can"
                    self._say(f"{self._directory} {said}")
                is_failing = True
                time.sleep(WRITE_AGAIN_SECONDS)
            else:
                break
        if is_failing:
            self._say(f"{self._directory} can be written again; the run goes on")

    def _keep(self, history: TrialHistory) -> None:
        if history.keeps_checkpoint:
            self._keepers[history.spec.method, history.assignment.phase].add(history.spec.trial_id)

    def _drop_losers(self, method: str, phase: Phase) -> None:
        """Delete the checkpoints of all but the method's best ended trials of a phase."""
        keepers = self._keepers[method, phase]
        winners = best_of((self.trials[key] for key in keepers), self._experiment.search.keep_checkpoints)
        for key in keepers - {trial.spec.trial_id for trial in winners}:
            self._drop(f"checkpoints/{key}")
            self.trials[key] = replace(self.trials[key], keeps_checkpoint=False)
            self._persist(partial(drop_checkpoint, self._directory, key))
            self._snapshots.changed(key)
            keepers.remove(key)

    def _drop_here(self, name: str) -> None:
        shutil.rmtree(self._directory / name, ignore_errors=True)


def _error_of(trial: Trial) -> str:
    """Return why a trial's worker failed the last time."""
    file = trial.error_file
    # The file has all failures of the trial, each below a line with its number.
    text = Path(file).read_text().rpartition("Failure # ")[2].partition("\n")[2].strip() if file else ""
    # An error of our own code comes with the worker's traceback; the last line is the error.
    told = text.splitlines()[-1] if "ray::" in text.partition("\n")[0] else text
    return _clean(told or "the worker process died")


def _clean(error: str) -> str:
    """Return an error's text as it may be shown and written: without secrets or half characters."""
    return redact(error).encode(errors="replace").decode()


def _death(error: str) -> Status:
    """Return the status of a trial whose worker is gone: out_of_memory if Ray killed it for that."""
    return "out_of_memory" if OUT_OF_MEMORY in error else "failed"
