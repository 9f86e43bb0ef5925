"""Runs of the command, as a user starts it, and what tests look at while they run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import pandas as pd
import psutil

from orchestrator.experiment import Assignment, Experiment
from orchestrator.history import TrialHistory
from orchestrator.prepare import prepare
from orchestrator.rows import Provenance, trial_record
from results import load
from results.schema import Status
from results.store import TrialRecord
from tests.conftest import data_settings
from trainables.trial import TrialInputs, run_trial

OUTCOME = [
    "trial_id",
    "method",
    "phase",
    "seed",
    "status",
    "evaluations",
    "best_evaluation",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "validation_macro_f1",
    "tokens",
    "test_loss",
    "test_accuracy",
    "checkpoint_bytes",
]
"""Columns of a trial's row that are the same whenever it runs, besides its hyperparameters."""

CURVE = ["trial_id", "evaluation", "step", "epoch", "examples", "tokens", "train_loss", "validation_loss"]
"""Columns of an evaluation that are the same whenever it is made."""


def small_experiment(
    directory: Path, model: Path, data_files: dict[str, Path], **changes: Any
) -> dict[str, Any]:
    """Return the values of an experiment that runs for seconds.

    Arguments:
        directory: where its runs are, in ``runs``.
        model: its base.
        data_files: its splits.
        changes: what takes the place of whole sections.
    """
    return {
        "name": "small",
        "model": {"path": str(model)},
        "data": data_settings(data_files),
        "training": {"epochs": 2, "batch_size": 8},
        "search": {"trials": 3},
        "confirm": {"seeds": 0},
        "methods": {"head": {}, "full": {}, "lora": {"rank": [2, 4]}, "dora": {}, "qlora": {}},
        "storage": str(directory / "runs"),
        **changes,
    }


def write_experiment(directory: Path, model: Path, data_files: dict[str, Path], **changes: Any) -> Path:
    """Write a small experiment, with changes, to a file of its name, with its runs beside it."""
    values = small_experiment(directory, model, data_files, **changes)
    file = directory / f"{values['name']}.yaml"
    file.write_text(json.dumps(values))  # JSON is YAML
    return file


started: list[subprocess.Popen[str]] = []
"""The runs of the current test; none outlives it."""


def run(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, environment=environment)
    out, err = _wait(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "orchestrator.run"),
    out: IO[str] | int = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Start a run.

    Arguments:
        arguments: of the command.
        environment: variables that it gets beside this process's.
        program: what Python runs with these arguments.
        out: where the run prints to.
    """
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        env={**os.environ, "PYTHONFAULTHANDLER": "1", **(environment or {})},
        stdout=out,
        stderr=subprocess.PIPE if out == subprocess.PIPE else subprocess.STDOUT,
        text=True,
    )
    started.append(process)
    return process


def end_started() -> None:
    """End the runs that a test has left, which only a failing test does, and show what they printed."""
    while started:
        process = started.pop()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            print(*_wait(process, 60))


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run to end well, and return what it printed."""
    out, err = _wait(process)
    assert process.returncode == 0, out + err
    return out


def _wait(process: subprocess.Popen[str], seconds: float = 300) -> tuple[str, str]:
    """Wait for a run to end; end one that hangs, and show its log, with the stacks of its threads."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER
        out, err = process.communicate()
        log = re.search("results and log.txt in (.*)", out or "")
        end = (Path(log[1]) / "log.txt").read_text()[-10_000:] if log else ""
        raise AssertionError(f"not done in {seconds} s: {out}{err}{end}") from None


def settings(*values: str) -> list[str]:
    """Return the arguments that override settings."""
    return [part for value in values for part in ("--set", value)]


def table(directory: Path | str) -> pd.DataFrame:
    """Return the columns of trials that are the same in two runs of one experiment."""
    trials = load(directory).trials
    columns = OUTCOME + sorted(column for column in trials if column.startswith("hp_"))
    return trials[columns].sort_values("trial_id", ignore_index=True)


def assert_same(directory: Path, expected: Path) -> None:
    """Check that a run's results are those of another run, and that no superfluous files are left."""
    assert_no_files_left(directory)
    found, wanted = load(directory), load(expected)
    pd.testing.assert_frame_equal(table(directory), table(expected))
    for name, columns in {
        "metrics": CURVE,
        "checkpoints": ["trial_id", "evaluation", "kind", "bytes", "sha256"],
        "predictions": ["trial_id", "example_id", "label", "prediction", "loss"],
    }.items():
        frames = [
            vars(results)[name][columns].sort_values(columns[:2], ignore_index=True)
            for results in (found, wanted)
        ]
        pd.testing.assert_frame_equal(*frames)


def assert_no_files_left(directory: Path) -> None:
    """Check that a run has no checkpoints but those in its table, and no states."""
    kept = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert kept == sorted(load(directory).checkpoints.trial_id)
    assert not list((directory / "states").rglob("*.safetensors")), "states of ended trials stay"


def assert_undisturbed(directory: Path | str, tolerance: float = 0.0) -> None:
    """Check that a run's results are those of its trials, each trained here: by itself, and with no fault.

    Arguments:
        directory: the run's, a path or a URI.
        tolerance: relative, of numbers; within it, the checkpoints' bytes may be others.
    """
    found = load(directory)
    with TemporaryDirectory() as place:
        expected = [_train_again(row, Path(place)) for row in found.trials.to_dict("records")]
    kept = set(found.checkpoints.trial_id)
    best = found.trials[found.trials.phase == "search"].groupby("method").validation_accuracy.idxmax()
    assert set(found.trials.trial_id[best]) <= kept, "the best trial's checkpoint is not kept"
    rows = {
        "trials": [record.trial for record in expected],
        "metrics": [row for record in expected for row in record.metrics],
        "predictions": [row for record in expected for row in record.predictions],
        "checkpoints": [row for record in expected for row in record.checkpoints if row["trial_id"] in kept],
    }
    exact = [] if tolerance else ["sha256"]
    for name, columns in {
        "trials": OUTCOME,
        "metrics": CURVE,
        "predictions": ["trial_id", "example_id", "label", "prediction", "loss"],
        "checkpoints": ["trial_id", "evaluation", "kind", "bytes", *exact],
    }.items():
        frames = [
            pd.DataFrame(frame, columns=columns).sort_values(columns[:2], ignore_index=True)
            for frame in (vars(found)[name], rows[name])
        ]
        pd.testing.assert_frame_equal(*frames, check_dtype=False, rtol=tolerance, atol=0.0)


def _train_again(row: dict[str, Any], place: Path) -> TrialRecord:
    """Train a trial from its row, in this process, and return the record that its run should have made."""
    settings = json.loads(row["settings"])
    experiment = Experiment.model_validate(settings["experiment"])
    assignment = Assignment(row["method"], settings["number"], settings["hyperparameters"], row["phase"])
    spec, prepared = experiment.trial_spec(assignment), prepare(experiment, print)
    test = prepared.test if assignment.phase == "confirm" else None
    inputs = TrialInputs(spec, prepared.data, prepared.base, place / spec.trial_id, test)
    curve = list(islice(run_trial(inputs), row["evaluations"]))
    status: Status = "completed" if curve[-1].is_last else "stopped"
    provenance = Provenance("", "", "", {}, None, {}, prepared.data.labels)
    return trial_record(experiment, provenance, TrialHistory(assignment, spec, status=status, curve=curve))


def wait_for(look: Callable[[], Any], seconds: float = 120) -> Any:
    """Call ``look`` until it finds something, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not in {seconds} s")


def journal(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text())["trials"][0] for file in sorted(directory.glob("journal/*.json"))]


def evaluations(directory: Path, trial_id: str) -> int:
    file = directory / "journal" / f"{trial_id}.json"
    return len(json.loads(file.read_text())["metrics"]) if file.exists() else 0


def wait_for_evaluations(directory: Path, trial_id: str, more: int) -> None:
    """Wait until a trial has made some more evaluations."""
    made = evaluations(directory, trial_id)
    wait_for(lambda: evaluations(directory, trial_id) >= made + more)


def seconds_until_training(directory: Path, trial_id: str, fault: Callable[[], object]) -> float:
    """Cause a fault, and return the seconds until a trial has made an evaluation it had not made before."""
    made, started = evaluations(directory, trial_id), time.monotonic()
    fault()
    wait_for(lambda: evaluations(directory, trial_id) > made)
    return time.monotonic() - started


def training(pid: int) -> list[psutil.Process]:
    """Return the worker processes below a process that are in a trial."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if re.match(r"ray::\w+-\w+ ", " ".join(child.cmdline())):
                found.append(child)
    return found
