"""Continues a run from its journal: trials that ended are kept, those that had begun go on, others start."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment, local_copy
from orchestrator.history import Earlier, TrialHistory
from orchestrator.rows import trial_history
from orchestrator.states import saved_evaluation
from results.errors import ResultSetError
from results.remote import is_uri, name_and_parent
from results.schema import UNFINISHED
from results.store import TrialRecord, read_journal

MAY_GROW: Final = ("search.trials", "confirm.seeds", "budget.train_seconds", "budget.examples")
"""Settings that may be larger than they were when the run began."""

MAY_CHANGE: Final = ("resources.", "logging.")
"""Sections of settings that no trial's numbers depend on."""


def check_owner(directory: Path) -> None:
    """Refuse a run directory that somebody else could have prepared.

    Raises:
        ExperimentError: if it, its experiment or its journal belongs to another user.
    """
    files = (directory, directory / "experiment.json", directory / "journal")
    owners = {file.stat().st_uid for file in files if file.exists()} - {os.geteuid()}
    if owners:
        raise ExperimentError(
            f"{directory}: belongs to {', '.join(map(_user, sorted(owners)))}, and what it says would be"
            f" run as {_user(os.geteuid())}; give --trust-owner if you trust them"
        )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def run_directory(run: str) -> Path:
    """Return the directory of the run at a path or a URI; for a URI, of its driver's copy."""
    return local_copy(run) if is_uri(run) else Path(run)


def read_run(run: str) -> Experiment:
    """Read the experiment that a run directory belongs to.

    Raises:
        ExperimentError: if there is none, it cannot be read, or the directory was renamed.
    """
    directory = run_directory(run)
    file = directory / "experiment.json"
    try:
        experiment = Experiment.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ExperimentError(f"{run}: no experiment.json; expected a run directory") from None
    except OSError as error:
        raise ExperimentError(f"{file}: could not be read: {error.strerror}") from None
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, detail['loc'])) or 'all of it'}: {detail['msg']}"
            for detail in error.errors()
        ]
        raise ExperimentError(
            *[f"{file}: not an experiment of this version: {problem}" for problem in problems]
        ) from None
    where = directory.absolute()
    if where.name != experiment.name:
        raise ExperimentError(f"{run}: expected a directory named {experiment.name}, like its experiment")
    storage = name_and_parent(run)[1] if is_uri(run) else str(where.parent)
    return experiment.model_copy(update={"storage": storage})


def growth_problems(recorded: Experiment, wanted: Experiment) -> list[str]:
    """Return why a run cannot continue as another experiment, if so.

    Arguments:
        recorded: what the run was.
        wanted: what it continues as; it may have more trials, seeds or methods, a larger budget, and other
            resources and logging.
    """
    before, after = (_leaves(one.model_dump(mode="json", exclude={"storage"})) for one in (recorded, wanted))
    added = tuple(f"methods.{method}." for method in wanted.methods if method not in recorded.methods)
    problems = [
        f"{key}: was {before.get(key)!r} when the run began, is {after.get(key)!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
        and not key.startswith((*MAY_CHANGE, *added))
        and not (key in MAY_GROW and _has_grown(before.get(key), after.get(key)))
    ]
    if problems:
        problems.append(
            f"expected what the run began with, except that {', '.join(MAY_GROW)} may grow, methods may"
            " be added, and resources and logging may change; for anything else give it a new --name"
        )
    return problems


def _has_grown(before: float | None, after: float | None) -> bool:
    """Say whether a number has grown; a budget that is set or removed is a different rule."""
    return before is not None and after is not None and before < after


def _leaves(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested values by dotted keys; a list counts as a value."""
    leaves = {}
    for key, value in values.items():
        below = _leaves(value, f"{above}{key}.") if isinstance(value, Mapping) else None
        leaves.update(below if below else {f"{above}{key}": value})
    return leaves


def recorded_trials(directory: Path) -> list[TrialRecord]:
    """Read the journal records of the trials that a run has begun.

    Raises:
        ExperimentError: naming a file that the program did not write.
    """
    try:
        return read_journal(directory)
    except ResultSetError as error:
        raise ExperimentError(str(error)) from None


def earlier_trials(
    directory: Path, experiment: Experiment, records: Sequence[TrialRecord], labels: Sequence[str]
) -> Earlier:
    """Rebuild a run's trials from its journal records.

    Raises:
        ExperimentError: naming a record that is not a trial of this run.
    """
    histories = [_history(directory, experiment, record, labels) for record in records]
    return Earlier(
        finished=[one for one in histories if one.status not in UNFINISHED],
        unfinished=[one for one in histories if one.status in UNFINISHED],
    )


def _history(
    directory: Path, experiment: Experiment, record: TrialRecord, labels: Sequence[str]
) -> TrialHistory:
    """Rebuild a trial of the run; one that had not ended is returned as it will continue."""
    try:
        trial = trial_history(experiment, record, labels)
        return _as_saved(directory, trial) if trial.status in UNFINISHED else trial
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ExperimentError(
            f"{directory}/journal: the record of {record.trial.get('trial_id')!r} is not a trial of"
            f" this run ({error!r}); remove its file to run the trial again"
        ) from None


def _as_saved(directory: Path, trial: TrialHistory) -> TrialHistory:
    """Return a trial as it was when its last state was saved; it repeats what it did afterwards."""
    saved = saved_evaluation(directory, trial.spec)
    curve = [point for point in trial.curve if point.evaluation <= saved]
    return replace(trial, status="running", curve=curve, error=None, ended_at=None, keeps_checkpoint=True)
