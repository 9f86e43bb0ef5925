"""The Tune callback that journals what trials report and keeps the best checkpoints."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, get_args

from ray import tune
from ray.tune.experiment import Trial

from orchestrator.experiment import Assignment, Experiment, Phase
from orchestrator.reports import ASSIGNMENT, ERROR, POINT, STATUS
from orchestrator.rows import Provenance, TrialHistory, trial_record
from results.store import Snapshots, write_record

SNAPSHOT_EVERY_SECONDS = 2.0
SNAPSHOT_SHARE = 0.05
"""Snapshots are rarer where they would take more than this share of the time."""
KEEPS_CHECKPOINT = ("completed", "stopped", "interrupted")
"""Statuses whose best checkpoint is worth keeping."""


def assignment_of(trial: Trial) -> Assignment:
    """Say which trial of the experiment a Tune trial is."""
    return Assignment(**trial.config[ASSIGNMENT])


class Watcher(Protocol):
    """Whoever wants to be told when a trial changed: the terminal."""

    def changed(self, trial: TrialHistory) -> None: ...


class Recorder(tune.Callback):
    """Journal every report at once; snapshot the tables now and then; drop checkpoints that lost.

    Arguments:
        experiment: what runs.
        provenance: what every row has in common.
        directory: the run directory.
        watcher: is told of every change.
        finished: trials of the run that an earlier process finished.
    """

    def __init__(
        self,
        experiment: Experiment,
        provenance: Provenance,
        directory: Path,
        watcher: Watcher,
        finished: Iterable[TrialHistory] = (),
    ) -> None:
        self._experiment = experiment
        self._provenance = provenance
        self._directory = directory
        self._watcher = watcher
        self._snapshots = Snapshots(directory)
        self._next_snapshot = 0.0
        self.trials = {history.spec.trial_id: history for history in finished}
        # Ended trials whose checkpoints are there, by method and phase: winners, and those not yet compared.
        self._keepers: dict[tuple[str, Phase], set[str]] = defaultdict(set)
        for history in self.trials.values():
            self._keep(history)

    def __getstate__(self) -> dict[str, Any]:
        """Give Tune's state files nothing: a run is continued from its journal."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        assignment = assignment_of(trial)
        spec = self._experiment.trial_spec(assignment)
        self._update(TrialHistory(assignment, spec, started_at=datetime.now(UTC)))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if POINT not in result:
            return
        history = self.trials[assignment_of(trial).trial_id]
        node = str(result.get("hostname"))
        self._update(replace(history, curve=(*history.curve, result[POINT]), node=node))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        result = trial.last_result or {}
        if STATUS in result:
            self._end(trial, result[STATUS], result[ERROR])
        else:
            self._end(trial, "completed" if self._is_whole(trial) else "stopped", None)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = trial.get_error()
        self._end(trial, "failed", f"{type(error).__name__}: {error}" if error else "the worker process died")

    def of_phase(self, phase: Phase) -> list[TrialHistory]:
        """Return the trials of a phase, so far as they are known."""
        return [trial for trial in self.trials.values() if trial.assignment.phase == phase]

    def close(self) -> None:
        """End trials that were still running as interrupted and write the last snapshot."""
        for key, history in list(self.trials.items()):
            if history.status == "running":
                self.trials[key] = replace(history, status="interrupted", ended_at=datetime.now(UTC))
                self._journal(self.trials[key])
                self._keep(self.trials[key])
        for method in self._experiment.methods:
            for phase in get_args(Phase):
                self._drop_losers(method, phase)
        self._snapshots.write()

    def _is_whole(self, trial: Trial) -> bool:
        curve = self.trials[assignment_of(trial).trial_id].curve
        return bool(curve) and curve[-1].is_last

    def _end(self, trial: Trial, status: str, error: str | None) -> None:
        # A trial whose worker died before it began was never started.
        trial_id = assignment_of(trial).trial_id
        if trial_id not in self.trials:
            self.on_trial_start(0, [], trial)
        history = self.trials[trial_id]
        self._update(replace(history, status=status, error=error, ended_at=datetime.now(UTC)))
        self._keep(self.trials[trial_id])
        self._drop_losers(history.spec.method, history.assignment.phase)

    def _update(self, history: TrialHistory) -> None:
        self.trials[history.spec.trial_id] = history
        self._journal(history)
        started = time.monotonic()
        if started >= self._next_snapshot:
            self._snapshots.write()
            ended = time.monotonic()
            self._next_snapshot = ended + max(SNAPSHOT_EVERY_SECONDS, (ended - started) / SNAPSHOT_SHARE)
        self._watcher.changed(history)

    def _journal(self, history: TrialHistory) -> None:
        write_record(self._directory, trial_record(self._experiment, self._provenance, history))
        self._snapshots.changed(history.spec.trial_id)

    def _keep(self, history: TrialHistory) -> None:
        if history.keeps_checkpoint:
            self._keepers[history.spec.method, history.assignment.phase].add(history.spec.trial_id)

    def _drop_losers(self, method: str, phase: Phase) -> None:
        """Delete the checkpoints of all but the method's best ended trials of a phase."""
        keepers = self._keepers[method, phase]
        for key in keepers - self._winners(keepers):
            shutil.rmtree(self._directory / "checkpoints" / key, ignore_errors=True)
            self.trials[key] = replace(self.trials[key], keeps_checkpoint=False)
            self._journal(self.trials[key])
            keepers.remove(key)

    def _winners(self, keepers: set[str]) -> set[str]:
        ended = [self.trials[key] for key in keepers]
        worthy = [trial for trial in ended if trial.status in KEEPS_CHECKPOINT and trial.best is not None]
        winners = sorted(worthy, key=lambda trial: trial.rank)[: self._experiment.search.keep_checkpoints]
        return {trial.spec.trial_id for trial in winners}
