"""TensorBoard, MLflow and Weights & Biases: a real run each, read back with the loggers' own readers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray.tune.logger import LoggerCallback

from orchestrator.experiment import Experiment
from orchestrator.loggers import Relay
from orchestrator.run import main
from tests.conftest import data_settings

NUMBERS = ("validation_accuracy", "validation_loss", "train_loss", "peak_memory_bytes", "train_seconds")


@pytest.fixture
def experiment(tmp_path: Path, model_directories: dict[str, Path], data_files: dict[str, Path]) -> Path:
    file = tmp_path / "logged.yaml"
    values = {
        "name": "logged",
        "model": {"path": str(model_directories["gpt2"])},
        "data": data_settings(data_files),
        "training": {"epochs": 1, "batch_size": 8},
        "search": {"trials": 1},
        "confirm": {"seeds": 1},
        "methods": {"head": {}, "wild": {"kind": "full", "learning_rate": 1e30}},
        "storage": str(tmp_path / "runs"),
    }
    file.write_text(json.dumps(values))
    return file


def run(experiment: Path, *settings: str, **environment: str) -> pd.DataFrame:
    """Run with settings, and return the evaluations of the result set."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.run", str(experiment), *settings],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "logging." not in done.stdout
    return pd.read_parquet(experiment.parent / "runs" / "logged" / "metrics.parquet")


def curve(metrics: pd.DataFrame, trial: str, name: str) -> dict[int, Any]:
    rows = metrics[metrics.trial_id == trial]
    return dict(zip(rows.step, rows[name], strict=True))


def test_tensorboard_and_mlflow(experiment: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    address = f"sqlite:///{tmp_path}/mlflow.db"
    metrics = run(experiment, "--set", "logging.tensorboard=true", "--set", f"logging.mlflow={address}")
    trials = ["head-000", "head-seed0", "wild-000"]

    directory = tmp_path / "runs" / "logged" / "tensorboard"
    assert sorted(path.name for path in directory.iterdir()) == trials
    events = accumulator.EventAccumulator(str(directory / "head-000")).Reload()
    for name in NUMBERS:
        logged = {event.step: event.value for event in events.Scalars(f"ray/tune/{name}")}
        assert logged == pytest.approx(curve(metrics, "head-000", name), rel=1e-6)  # of float32
    confirmed = accumulator.EventAccumulator(str(directory / "head-seed0")).Reload()
    assert len(confirmed.Scalars("ray/tune/test_accuracy")) == 1

    client = mlflow.MlflowClient(tracking_uri=address)
    tracked = client.get_experiment_by_name("logged")
    runs = {one.info.run_name: one for one in client.search_runs([tracked.experiment_id])}
    assert sorted(runs) == trials
    assert {name: one.info.status for name, one in runs.items()} == {
        **dict.fromkeys(trials, "FINISHED"),
        "wild-000": "FAILED",
    }
    parameters = runs["head-000"].data.params
    assert parameters.keys() == {"method", "phase", "seed", "learning_rate"}
    assert float(parameters["learning_rate"]) == 1e-3
    for name in NUMBERS:
        history = client.get_metric_history(runs["head-000"].info.run_id, name)
        assert {one.step: one.value for one in history} == curve(metrics, "head-000", name)


def test_wandb_offline(experiment: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    run(experiment, "--methods", "head", "--set", "logging.wandb=comparison", WANDB_MODE="offline")
    directory = tmp_path / "runs" / "logged" / "wandb"
    assert sorted(path.name for path in directory.iterdir()) == ["head-000", "head-seed0"]
    (recorded,) = directory.glob("head-000/wandb/offline-run-*/*.wandb")
    content = recorded.read_bytes()
    for part in (b"head-000", b"comparison", b"validation_accuracy", b"learning_rate"):
        assert part in content


def test_logging_that_cannot_work_is_refused_before_anything_starts(
    experiment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.loggers.find_spec", lambda name: None)
    wanted = ("--set", "logging.mlflow=sqlite:///x.db", "--set", "logging.wandb=comparison")
    assert main([str(experiment), *wanted]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert f"{experiment}: logging.mlflow: needs the Python package mlflow" in lines[0]
    assert f"{experiment}: logging.wandb: needs the Python package wandb" in lines[1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "ftp://here"])
def test_a_tracking_server_that_is_not_there_is_refused(
    address: str, experiment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="needs mlflow")
    assert main([str(experiment), "--set", f"logging.mlflow={address}"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"{experiment}: logging.mlflow: {address}: " in line
    assert not (tmp_path / "runs").exists()


class Broken(LoggerCallback):
    """A logger whose server has gone away."""

    def __init__(self) -> None:
        self.calls = 0

    def setup(self, *args: Any, **info: Any) -> None:
        self.calls += 1
        raise ConnectionError("the server has gone away")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.calls += 1


def test_a_logger_that_fails_says_so_once_and_is_left_alone(tmp_path: Path) -> None:
    said: list[str] = []
    broken = Broken()
    relay = Relay("mlflow", broken, Experiment(), tmp_path, said.append)
    relay.setup()
    relay.on_experiment_end([])
    assert len(said) == 1
    assert "logging.mlflow ended with ConnectionError: the server has gone away" in said[0]
    assert broken.calls == 1
