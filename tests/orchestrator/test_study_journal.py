"""The studies' file: what studies learned, read by Optuna and by a real optuna-dashboard."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from orchestrator.experiment import Assignment, Experiment
from orchestrator.history import TrialHistory
from orchestrator.study_journal import STUDIES_FILE, StudyJournal
from results.evaluation import Evaluation

EXPERIMENT = Experiment.model_validate({"name": "demo", "methods": {"full": {}, "lora": {}}})
HYPERPARAMETERS = {
    "full": {"learning_rate": 1e-4},
    "lora": {"rank": 4, "alpha": 16, "learning_rate": 5e-4},
}


def evaluation(number: int, accuracy: float) -> Evaluation:
    values: dict[str, Any] = dict.fromkeys(Evaluation.__dataclass_fields__)
    values |= {"evaluation": number, "validation_accuracy": accuracy, "is_best": True}
    return Evaluation(**values)


def trial(method: str, number: int, phase: Any = "search") -> TrialHistory:
    assignment = Assignment(method, number, HYPERPARAMETERS[method], phase)
    started = datetime(2026, 1, 1, 12, number, tzinfo=UTC)
    return TrialHistory(assignment, EXPERIMENT.trial_spec(assignment), started_at=started)


def live(
    journal: StudyJournal, begun: TrialHistory, accuracies: Sequence[float], status: str
) -> TrialHistory:
    """Tell the journal a trial's life as the recorder does."""
    journal.changed(begun)
    now = begun
    for number, accuracy in enumerate(accuracies, start=1):
        now = replace(now, curve=(*now.curve, evaluation(number, accuracy)))
        journal.changed(now)
    ended = replace(
        now,
        status=status,
        ended_at=datetime(2026, 1, 1, 13, tzinfo=UTC),
        error="RuntimeError: boom" if status == "failed" else None,
    )
    journal.changed(ended)
    return ended


def load(directory: Path, method: str) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(directory / STUDIES_FILE)))
    return optuna.load_study(study_name=f"demo/{method}", storage=storage)


def told(study: optuna.Study) -> list[Any]:
    return [
        (
            trial.number,
            trial.state.name,
            trial.values,
            trial.params,
            trial.user_attrs,
            trial.intermediate_values,
        )
        for trial in study.trials
    ]


def test_each_method_has_its_study_with_what_its_trials_came_to(tmp_path: Path) -> None:
    journal = StudyJournal(EXPERIMENT, tmp_path)
    live(journal, trial("lora", 0), [0.6, 0.9, 0.8], "completed")
    live(journal, trial("lora", 1), [0.5], "stopped")
    live(journal, trial("lora", 2), [0.7], "failed")
    live(journal, trial("lora", 0, "confirm"), [0.7], "completed")
    journal.changed(trial("full", 0))
    study = load(tmp_path, "lora")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert study.best_value == 0.9
    assert study.best_params == HYPERPARAMETERS["lora"]
    assert study.best_trial.user_attrs["trial_id"] == "lora-000"
    assert study.best_trial.intermediate_values == {1: 0.6, 2: 0.9, 3: 0.8}
    assert study.best_trial.distributions == EXPERIMENT.space("lora")
    assert study.trials[1].user_attrs["status"] == "stopped"
    assert study.trials[2].user_attrs["error"] == "RuntimeError: boom"
    assert [trial.state.name for trial in load(tmp_path, "full").trials] == ["RUNNING"]


def test_a_run_that_is_continued_has_every_trial_once(tmp_path: Path) -> None:
    journal = StudyJournal(EXPERIMENT, tmp_path)
    finished = [
        live(journal, trial("lora", 0), [0.6, 0.9], "completed"),
        live(journal, trial("full", 0), [], "failed"),
        live(journal, trial("lora", 1), [0.5], "stopped"),
    ]
    journal.changed(trial("lora", 2))
    before = {method: told(load(tmp_path, method)) for method in EXPERIMENT.methods}
    (tmp_path / f"{STUDIES_FILE}.lock").symlink_to("left by a process that was killed")
    continued = StudyJournal(EXPERIMENT, tmp_path, reversed(finished))
    assert told(load(tmp_path, "full")) == before["full"]
    assert told(load(tmp_path, "lora")) == before["lora"][:2]
    live(continued, trial("lora", 2), [0.4], "completed")
    assert [trial.user_attrs["trial_id"] for trial in load(tmp_path, "lora").trials] == [
        *("lora-000", "lora-001", "lora-002")
    ]


def test_a_file_that_cannot_be_written_ends_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    journal = StudyJournal(EXPERIMENT, tmp_path, say=said.append)
    live(journal, trial("lora", 0), [0.6], "completed")

    def tear(self: JournalFileBackend, logs: list[Any]) -> None:
        with open(tmp_path / STUDIES_FILE, "a") as file:
            file.write('{"op_code": ')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", tear)
        live(journal, trial("lora", 1), [0.6], "completed")
    live(journal, trial("lora", 2), [0.6], "completed")
    [line] = said
    assert "optuna.journal cannot be written any more" in line
    assert "No space left on device; the run goes on without it" in line


def get(url: str) -> Any:
    """Ask until the server is up."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_optuna_dashboard_opens_it(tmp_path: Path) -> None:
    program = shutil.which("optuna-dashboard", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("needs optuna-dashboard (pip install optuna-dashboard)")
    live(StudyJournal(EXPERIMENT, tmp_path), trial("lora", 0), [0.6, 0.9], "completed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [program, str(tmp_path / STUDIES_FILE), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        studies = get(f"http://127.0.0.1:{port}/api/studies")["study_summaries"]
        assert {study["study_name"] for study in studies} == {"demo/full", "demo/lora"}
        number = next(study["study_id"] for study in studies if study["study_name"] == "demo/lora")
        detail = get(f"http://127.0.0.1:{port}/api/studies/{number}")
        assert [(one["state"], one["values"]) for one in detail["trials"]] == [("Complete", [0.9])]
    finally:
        server.terminate()
        server.wait(timeout=30)
