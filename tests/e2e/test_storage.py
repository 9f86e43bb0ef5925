"""Whole runs whose storage is a URI: a real S3 server, real outages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from s3_server import Proxy

from results import load
from results.remote import RemoteDirectory

OUTCOME = ["trial_id", "phase", "seed", "status", "evaluations", "validation_accuracy", "validation_loss"]
OUTCOME += ["train_loss", "test_accuracy", "test_loss", "tokens", "hp_learning_rate"]


@pytest.fixture
def uri(s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FINETUNE_COMPARISON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def experiment(
    uri: str, tmp_path: Path, model_directories: dict[str, Path], data_files: dict[str, Path]
) -> Path:
    file = tmp_path / "small.yaml"
    values = {
        "name": "small",
        "model": {"path": str(model_directories["gpt2"])},
        "data": {
            "path": None,
            "columns": ["sentence", "label"],
            **{name: str(path) for name, path in data_files.items()},
        },
        "training": {"epochs": 30, "batch_size": 8},
        "search": {"trials": 2, "early_stopping": "none"},
        "confirm": {"seeds": 2},
        "methods": {"full": {}, "lora": {"rank": 2}},
        "resources": {"max_concurrent": 1},
        "storage": uri,
    }
    file.write_text(json.dumps(values))  # JSON is YAML
    return file


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "orchestrator.run", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert not err
    return out


def outcome(path: str | Path) -> pd.DataFrame:
    return load(path).trials[OUTCOME].sort_values("trial_id", ignore_index=True)


def wait_for(look: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def recorded(run: RemoteDirectory, trial_id: str) -> int:
    """Return how many evaluations of a trial are journaled there."""
    try:
        return len(json.loads(run.read(f"journal/{trial_id}.json"))["metrics"])
    except FileNotFoundError:
        return 0


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a driver and all that it has started."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    for child in family:
        child.kill()
    psutil.wait_procs(family, timeout=30)


def test_a_run_lives_at_its_uri_and_is_continued_from_there_by_another_machine(
    experiment: Path, uri: str, s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(start(experiment, "--set", f"storage={tmp_path}/local"))
    process = start(experiment)
    run = RemoteDirectory(f"{uri}/small")
    wait_for(lambda: recorded(run, "full-001") >= 5)
    s3.mode = "fail"  # an outage, and then the machine is gone
    time.sleep(3)
    kill(process)
    s3.mode = "pass"
    assert outcome(f"{uri}/small").status.tolist().count("running") == 1
    second = start("--resume", f"{uri}/small")
    monkeypatch.setenv("FINETUNE_COMPARISON_CACHE", str(tmp_path / "another-machine"))
