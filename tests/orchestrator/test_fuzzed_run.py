"""Run directories of every kind given to --resume: read, or one line for each problem."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.errors import ExperimentError
from orchestrator.experiment import Assignment, Experiment
from orchestrator.history import TrialHistory
from orchestrator.loading import load_experiment
from orchestrator.ownership import write_experiment
from orchestrator.recorder import Recorder
from orchestrator.reports import ERROR, STATUS
from orchestrator.resume import earlier_trials, read_run, recorded_trials
from orchestrator.rows import Provenance, trial_record
from orchestrator.run import main
from results import load
from results.evaluation import Checkpoint, Evaluation
from results.evaluation import TestOutcome as Judged
from results.store import Snapshots, write_record
from trainables.embedded import cache_directory

fuzzed = settings(
    max_examples=3 * settings().max_examples,  # 'make soak' has another profile
    deadline=20_000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

LABELS = ("0", "1")


def evaluation(number: int, test: Judged | None = None) -> Evaluation:
    counts = dict.fromkeys(
        ("examples", "tokens", "trainable_parameters", "total_parameters", "model_bytes"), 8
    )
    shares = dict.fromkeys(
        ("train_loss", "validation_loss", "validation_accuracy", "validation_macro_f1"), 0.5
    )
    seconds = dict.fromkeys(("train_seconds", "evaluation_seconds", "setup_seconds"), 1.5)
    return Evaluation(
        evaluation=number,
        step=4 * number,
        epoch=0.5 * number,
        **counts,
        **shares,
        **seconds,
        peak_memory_bytes=None,
        peak_memory_source=None,
        is_best=number == 1,
        is_last=number == 2,
        checkpoint=Checkpoint("x", "adapter", 9, "0" * 64) if number == 1 else None,
        device="cpu",
        test=test,
    )


def write_run(experiment: Experiment) -> Path:
    """Write what a run leaves for --resume."""
    directory = experiment.run_directory
    directory.mkdir(parents=True)
    write_experiment(experiment, directory)
    provenance = Provenance("0" * 64, "sst2", "1" * 64, {"train": "x"}, None, {"torch": "2"}, LABELS)
    judged = Judged(0.5, 0.5, 0.5, 1.0, np.arange(2), np.array([0, 1]), np.zeros((2, 2), np.float32))
    for number, phase, status in (
        (0, "search", "completed"),
        (1, "search", "running"),
        (0, "confirm", "completed"),
    ):
        hyperparameters = {"rank": 4, "alpha": 8, "learning_rate": 1e-3}
        assignment = Assignment("lora", number, hyperparameters, phase)  # type: ignore[arg-type]
        test = judged if phase == "confirm" else None
        trial = TrialHistory(
            assignment,
            experiment.trial_spec(assignment),
            status=status,
            curve=[evaluation(1), evaluation(2, test)],
            started_at=datetime(2026, 1, 1, tzinfo=UTC),
            node="here",
        )
        write_record(directory, trial_record(experiment, provenance, trial))
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_run(load_experiment(None, [f"storage={tmp_path}/runs"]))


def resume(directory: Path) -> None:
    """Do with a run what --resume does before it needs data and model."""
    before = sorted(directory.rglob("*"))
    try:
        experiment = read_run(str(directory))
        earlier_trials(directory, experiment, recorded_trials(directory), LABELS)
    except ExperimentError as error:
        assert error.problems  # noqa: PT017  # each is printed
        for problem in error.problems:
            assert problem.startswith(str(directory))
            assert problem.isprintable()
    assert sorted(directory.rglob("*")) == before


def test_what_a_run_leaves_is_read(directory: Path) -> None:
    records = recorded_trials(directory)
    earlier = earlier_trials(directory, read_run(str(directory)), records, LABELS)
    assert [trial.spec.trial_id for trial in earlier.finished] == ["lora-000", "lora-seed0"]
    assert [trial.spec.trial_id for trial in earlier.unfinished] == ["lora-001"]
    assert len(records) == 3


def test_a_trial_that_loses_its_checkpoint_later_keeps_the_rest_of_its_row(directory: Path) -> None:
    """Who trained it, and with what, is not who goes on with the run."""
    unfinished = recorded_trials(directory)[1]
    write_record(directory, replace(unfinished, trial={**unfinished.trial, "status": "completed"}))
    experiment, before = read_run(str(directory)), recorded_trials(directory)
    earlier = earlier_trials(directory, experiment, before, LABELS)
    now = Provenance("0" * 64, "sst2", "1" * 64, {"train": "x"}, "another", {"torch": "3"}, LABELS)
    Recorder(experiment, now, directory, [], print, earlier).close()
    after = recorded_trials(directory)
    assert [one.trial for one in after] == [one.trial for one in before]
    assert [bool(one.checkpoints) for one in before] == [True, True, True]
    assert [bool(one.checkpoints) for one in after] == [True, False, True]


texts = st.text(max_size=8) | st.sampled_from(
    ["lora", "nan", "../../x", "/etc/x", "\x1b[2J", "{}", "0", "running"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
FILES = ["experiment.json", "journal/lora-000.json", "journal/lora-001.json", "journal/lora-seed0.json"]


def places(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the keys and indices that lead to every value of a JSON document."""
    inner = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def put(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    *path, last = place
    inner = content
    for key in path:
        inner = inner[key]
    inner[last] = value
    return content


@fuzzed
@given(file=st.sampled_from(FILES), data=st.data())
def test_values_of_every_kind(directory: Path, file: str, data: st.DataObject) -> None:
    whole = (directory / file).read_text()
    content = json.loads(whole)
    content = put(content, data.draw(st.sampled_from(places(content))), data.draw(values))
    (directory / file).write_text(json.dumps(content))
    resume(directory)
    (directory / file).write_text(whole)


@fuzzed
@given(
    file=st.sampled_from(FILES),
    at=st.integers(0, 3000),
    cut=st.integers(0, 40) | st.just(10**6),
    piece=st.binary(max_size=6) | st.sampled_from([b"[" * 5000, b"\x00", b"\xff", b"1e999", b"NaN", b"{"]),
)
@example(file="experiment.json", at=0, cut=10**6, piece=b"")
@example(file="journal/lora-000.json", at=0, cut=10**6, piece=b"[" * 100_000)
def test_bytes_of_every_kind(directory: Path, file: str, at: int, cut: int, piece: bytes) -> None:
    whole = (directory / file).read_bytes()
    at %= len(whole)
    (directory / file).write_bytes(whole[:at] + piece + whole[at + cut :])
    resume(directory)
    (directory / file).write_bytes(whole)


def reproduce(directory: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Have --reproduce refuse a trial of a run, and return what it says."""
    Snapshots(directory).write()
    assert main(["--reproduce", str(directory), "lora-000", *arguments]) == 2
    [line] = capfd.readouterr().err.splitlines()
    return line


def test_a_run_does_not_decide_whose_code_is_trusted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = [f"storage={tmp_path}/runs", "model={path: ./brings-code, trust_remote_code: true}"]
    directory = write_run(load_experiment(None, settings))
    said = reproduce(directory, capfd)
    assert said.startswith(f"{directory}: ./brings-code brings Python code")
    assert said.endswith("if you do too, give --set model.trust_remote_code=true")
    trusting = reproduce(directory, capfd, "--set", "model.trust_remote_code=true")
    assert "no such directory: ./brings-code" in trusting


@pytest.mark.parametrize("place", ["{}", "file://{}"])
def test_a_run_that_is_continued_does_not_decide_it_either(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    settings = [f"storage={tmp_path}/runs", "model={path: ./brings-code, trust_remote_code: true}"]
    run = place.format(write_run(load_experiment(None, settings)))
    assert main(["--resume", run, "--dry-run"]) == 2
    trust = "--set model.trust_remote_code=true"
    assert capfd.readouterr().err.rstrip().endswith(f"if you do too, give {trust}")
    assert main(["--resume", run, "--dry-run", *trust.split()]) == 2
    assert "no such directory: ./brings-code" in capfd.readouterr().err
    assert not list((cache_directory() / "runs").glob("*/demo")), "a dry run leaves no copy of one at a URI"


def test_hyperparameters_are_in_the_order_in_which_they_were_suggested(directory: Path) -> None:
    experiment = read_run(str(directory))
    earlier = earlier_trials(directory, experiment, recorded_trials(directory), LABELS)
    assert list(earlier.finished[0].assignment.hyperparameters) == ["rank", "alpha", "learning_rate"]


def test_errors_are_recorded_without_secrets_and_states_of_ended_trials_go(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2hunter2")
    experiment = read_run(str(directory))
    for trial_id in ("lora-000", "lora-001"):
        (directory / "states" / trial_id / "000002-x").mkdir(parents=True)
    earlier = earlier_trials(directory, experiment, recorded_trials(directory), LABELS)
    provenance = Provenance("0" * 64, "sst2", "1" * 64, {"train": "x"}, None, {"torch": "2"}, LABELS)
    told: list[TrialHistory] = []
    watcher = SimpleNamespace(changed=told.append)
    recorder = Recorder(experiment, provenance, directory, [watcher], print, earlier)
    assert [state.name for state in (directory / "states").iterdir()] == ["lora-001"]
    assignment = Assignment("lora", 5, {"rank": 4, "alpha": 8, "learning_rate": 1e-3})
    result = {STATUS: "failed", ERROR: "no: hunter2hunter2 and half a \ud83d"}
    trial: Any = SimpleNamespace(config=assignment.to_config(), last_result=result)
    recorder.on_trial_complete(0, [], trial)
    assert told[-1].error == "no: *** and half a ?"
    recorder.close()
    assert list(load(directory).trials.error.dropna()) == ["no: *** and half a ?"]


@pytest.mark.parametrize("settings", [None, "", "[]", "{", "{}", '{"experiment": {}}', '{"experiment": []}'])
def test_settings_that_are_none_are_refused(
    directory: Path, capfd: pytest.CaptureFixture[str], settings: str | None
) -> None:
    file = directory / "journal" / "lora-000.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(put(content, ("trials", 0, "settings"), settings)))
    assert "settings of lora-000: not those of a trial of this version" in reproduce(directory, capfd)
