"""Loggers that cannot work or fail; tests/e2e/test_logged.py has TensorBoard and MLflow in a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.logger import LoggerCallback
from runs import finish, start, write_experiment

from orchestrator.experiment import Experiment
from orchestrator.loggers import Relay
from orchestrator.run import main


@pytest.fixture
def experiment(tmp_path: Path, model_directories: dict[str, Path], data_files: dict[str, Path]) -> Path:
    return write_experiment(
        tmp_path,
        model_directories["gpt2"],
        data_files,
        name="logged",
        training={"epochs": 1, "batch_size": 8},
        search={"trials": 1},
        confirm={"seeds": 1},
        methods={"head": {}},
    )


def test_wandb_offline(experiment: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb")
    offline = {"WANDB_MODE": "offline"}
    finish(start(experiment, "--set", "logging.wandb=comparison", environment=offline))
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
