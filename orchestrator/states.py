"""Where trials save their states, for another worker or another run of the command to continue from.

A trial's are in ``states/TRIAL/`` of the run directory until it has ended. They are safetensors and JSON:
reading them runs no code.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from trainables.errors import DamagedStateError
from trainables.setup import TrialSpec
from trainables.state import TrialState


def read_state(run_directory: Path, spec: TrialSpec) -> tuple[TrialState, str | None]:
    """Return a trial's newest intact state, or a new one, and the damage found in newer ones, if any."""
    damage = None
    for directory in sorted(_of(run_directory, spec.trial_id).glob(f"*-{_identity(spec)}"), reverse=True):
        try:
            return TrialState.read(directory), damage
        except DamagedStateError as error:
            damage = str(error)
    return TrialState(), damage


def save_state(run_directory: Path, spec: TrialSpec, state: TrialState, writes: bool = True) -> None:
    """Save a trial's state in place of the previous one.

    Arguments:
        run_directory: of the experiment.
        spec: the trial's.
        state: its state.
        writes: whether this process is the rank that writes; all ranks must call.

    Raises:
        OSError: if it could not be written; the previous one is still there.
    """
    states = _of(run_directory, spec.trial_id)
    directory = states / f"{state.progress.evaluation:06d}-{_identity(spec)}"
    state.save(directory)
    if writes:
        for other in states.iterdir():
            if other != directory:
                shutil.rmtree(other, ignore_errors=True)


def saved_evaluation(run_directory: Path, spec: TrialSpec) -> int:
    """Return the evaluation after which a trial's newest state was saved; 0 if there is none."""
    names = [path.name for path in _of(run_directory, spec.trial_id).glob(f"*-{_identity(spec)}")]
    return max((evaluation_of(name) or 0 for name in names), default=0)


def evaluation_of(name: str) -> int | None:
    """Return the evaluation that a state's directory is named after; None if it is no state's."""
    evaluation = name.partition("-")[0]
    return int(evaluation) if evaluation.isdecimal() else None


def _of(run_directory: Path, trial_id: str) -> Path:
    return run_directory / "states" / trial_id


def _identity(spec: TrialSpec) -> str:
    """Hash what decides a trial's numbers: a state with other hyperparameters is not this trial's."""
    parts = (spec.kind, spec.seed, spec.settings, spec.training)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
