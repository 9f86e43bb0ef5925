"""Whole runs whose storage is a URI: a real S3 server, real outages."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from orchestrator.run import main
from results import load
from results.remote import RemoteDirectory
from s3_server import Proxy

OUTCOME = ["trial_id", "phase", "seed", "status", "evaluations", "validation_accuracy", "validation_loss"]
OUTCOME += ["train_loss", "test_accuracy", "test_loss", "tokens", "hp_learning_rate"]


@pytest.fixture
def uri(s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FINETUNE_COMPARISON_CACHE", str(tmp_path / "cache"))
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
        "training": {"epochs": 4, "batch_size": 8},
        "search": {"trials": 2, "early_stopping": "none"},
        "confirm": {"seeds": 1},
        "methods": {"lora": {"rank": 2}},
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


def test_a_run_at_a_uri_that_is_killed_continued_and_loses_its_storage_for_a_while(
    experiment: Path, uri: str, s3: Proxy, tmp_path: Path
) -> None:
    finish(start(experiment, "--set", f"storage={tmp_path}/local"))
    expected = outcome(tmp_path / "local" / "small")

    process = start(experiment)
    run = RemoteDirectory(f"{uri}/small")
    wait_for(lambda: recorded(run, "lora-000") >= 3 and run.child("states/lora-000").files())
    kill(process)
    assert load(run.uri).trials.status.tolist() == ["running"]
    # The machine is lost, and with it the driver's own copy.
    [copy] = (tmp_path / "cache" / "runs").iterdir()
    shutil.rmtree(copy)

    resumed = start("--resume", run.uri)
    begun = recorded(run, "lora-000")
    wait_for(lambda: recorded(run, "lora-000") >= begun + 2)
    s3.mode = "fail"
    time.sleep(8)
    assert s3.refused > 5
    s3.mode = "pass"
    out = finish(resumed)

    assert out.count("cannot be written") == out.count("can be written again") == 1
    assert f"{run.uri}: 0 trials are done, 1 go on" in out
    assert f"report: {run.uri}/report/index.html" in out
    pd.testing.assert_frame_equal(outcome(run.uri), expected)
    found = load(run.uri)
    assert not found.trials.retries.any(), "an outage disturbs no trial"
    curves = [
        load(path).metrics.sort_values(["trial_id", "evaluation"]) for path in (run.uri, tmp_path / "local")
    ]
    columns = ["trial_id", "evaluation", "step", "train_loss", "validation_loss"]
    pd.testing.assert_frame_equal(*(curve[columns].reset_index(drop=True) for curve in curves))
    assert len(pd.read_parquet(f"{run.uri}/trials.parquet")) == len(expected)

    files = run.files()
    assert not [name for name in files if name.startswith(("states/", "ray/", "driver.json"))]
    kept = {name.split("/")[1] for name in files if name.startswith("checkpoints/")}
    assert kept == set(found.checkpoints.trial_id)
    for _, row in found.checkpoints.iterrows():
        weights = run.read(f"{row.path}/adapter_model.safetensors")
        assert hashlib.sha256(weights).hexdigest() == row.sha256
    assert {"experiment.json", "log.txt", "optuna.journal", "report/index.html"} <= set(files)
    assert not copy.exists()
    everything = out.encode() + b"".join(run.read(name) for name in files)
    assert b"planted-" not in everything, "credentials are nowhere"


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("s3://no-such-bucket/runs", "cannot be written: .*NO_SUCH_BUCKET"),
        ("s3://planted-id:planted-key@bucket/runs", "holds credentials"),
        ("nosuch://bucket/runs", "no filesystem is called nosuch"),
        ("dropbox://bucket/runs", "requires .*dropboxdrivefs"),
    ],
)
def test_storage_that_cannot_be_used_is_one_message(
    uri: str, storage: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--set", f"storage={storage}"]) == 2
    said = capfd.readouterr().err
    assert re.search(rf"built-in experiment: storage: .*{message}", said), said
    assert len(said.splitlines()) == 1
    assert "planted" not in said


def test_a_name_that_is_taken_and_a_run_that_is_not_there(
    experiment: Path,
    uri: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    RemoteDirectory(f"{uri}/small").write("experiment.json", b"{}")
    assert main([str(experiment)]) == 2
    assert f"name: {uri}/small exists already" in capfd.readouterr().err
    assert main(["--resume", f"{uri}/none"]) == 2
    assert f"{uri}/none: no experiment.json" in capfd.readouterr().err
    assert not list((tmp_path / "cache" / "runs").glob("*/none")), "its name is free"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for arguments in ([str(experiment)], ["--resume", f"{uri}/small"]):
        assert main(arguments) == 2
        said = capfd.readouterr().err
        assert len(said.splitlines()) == 1
        assert uri in said
        assert "connect" in said


def size(directory: Path) -> int:
    """Return the bytes below a directory, while others write there."""
    total = 0
    for above, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(above, name)).st_size
    return total


def test_checkpoints_on_disk_stay_bounded_over_fifty_trials(experiment: Path, tmp_path: Path) -> None:
    settings = ("search.trials=50", "confirm.seeds=0", "training.epochs=2", "resources.max_concurrent=2")
    values = [part for value in settings for part in ("--set", value)]
    process = start(experiment, *values, "--set", f"storage={tmp_path}", "--set", "methods={full: {}}")
    run = tmp_path / "small"
    peaks = {"checkpoints": 0, "states": 0}
    while process.poll() is None:
        for name in peaks:
            peaks[name] = max(peaks[name], size(run / name))
        time.sleep(0.01)
    finish(process)
    trials = load(run).trials
    assert len(trials) == 50
    one = trials.checkpoint_bytes.max()
    # One is kept, each of two that run has one, and another beside it while that is written. When a trial
    # ends, the next may have begun before the loser is gone.
    assert one <= peaks["checkpoints"] <= (1 + 2 * 2 + 2) * one
    # A state has the weights and two moments of each; the new one is written beside the old one.
    assert one <= peaks["states"] <= 2 * 2 * 3.2 * one
    assert size(run / "checkpoints") <= 1.01 * one
    assert not size(run / "states")
