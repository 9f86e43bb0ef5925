"""Whole runs whose storage is a URI: a real S3 server, real outages."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from runs import assert_undisturbed, finish, settings, start, wait_for
from s3_server import Proxy

from orchestrator.run import main
from results import load
from results.remote import RemoteDirectory


@pytest.fixture
def uri(s3: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where runs are stored; their drivers' copies are in ``tmp_path / "cache"``."""
    monkeypatch.setenv("FINETUNE_COMPARISON_CACHE", str(tmp_path / "cache"))
    return f"s3://bucket/{tmp_path.name}"


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
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(family, timeout=30)


SEARCH = (
    *("training.epochs=20", "search.trials=1", "search.early_stopping=none", "confirm.seeds=1"),
    *("methods={lora: {rank: 2}}", "resources.max_concurrent=1"),
)
"""Two trials of forty evaluations each: the storage has caught up with the first before it ends."""


def test_a_run_at_a_uri_that_is_killed_continued_and_loses_its_storage_for_a_while(
    experiment: Path, uri: str, s3: Proxy, tmp_path: Path
) -> None:
    process = start(experiment, *settings(*SEARCH, f"storage={uri}"))
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
    time.sleep(4)
    assert s3.refused > 5
    s3.mode = "pass"
    out = finish(resumed)

    assert out.count("cannot be written") == out.count("can be written again") == 1
    assert f"{run.uri}: 0 trials are done, 1 goes on" in out
    assert f"report: {run.uri}/report/index.html" in out
    assert_undisturbed(run.uri)
    found = load(run.uri)
    assert not found.trials.retries.any(), "an outage disturbs no trial"
    assert len(pd.read_parquet(f"{run.uri}/trials.parquet")) == 2

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
    arguments = [str(experiment), "--set", f"storage={uri}"]
    assert main(arguments) == 2
    assert f"name: {uri}/small exists already" in capfd.readouterr().err
    assert main(["--resume", f"{uri}/none"]) == 2
    assert f"{uri}/none: no experiment.json" in capfd.readouterr().err
    assert not list((tmp_path / "cache" / "runs").glob("*/none")), "its name is free"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for command in (arguments, ["--resume", f"{uri}/small"]):
        assert main(command) == 2
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
    wanted = ("search.trials=50", "training.epochs=1", "resources.max_concurrent=2", "methods={full: {}}")
    process = start(experiment, *settings(*wanted))
    run = tmp_path / "runs" / "small"
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
