"""``resources: auto`` through the command: what is measured, what follows, and what does not fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from runs import run, write_experiment

from orchestrator.run import main
from results import load

CPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Runs are of a CPU; test_gpu.py has the GPU's."""


@pytest.fixture
def experiment(tmp_path: Path, model_directories: dict[str, Path], data_files: dict[str, Path]) -> Path:
    return write_experiment(
        tmp_path,
        model_directories["gpt2"],
        data_files,
        name="auto",
        training={"epochs": 1, "batch_size": 8},
        search={"trials": 1},
        methods={"head": {}, "lora": {"rank": [2, 4], "target_modules": [["c_attn"], ["c_fc"]]}},
        resources="auto",
    )


def test_a_run_asks_for_what_was_measured_and_its_numbers_do_not_depend_on_it(
    experiment: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run(experiment, environment=CPU)
    assert done.returncode == 0, done.stdout + done.stderr
    peaks = re.search(r"measured peaks: head ([\d,]+) MB, lora ([\d,]+) MB", done.stdout)
    assert peaks, done.stdout
    directory = tmp_path / "runs" / "auto"
    resources = json.loads((directory / "experiment.json").read_text())["resources"]
    hungriest = max(int(peak.replace(",", "")) for peak in peaks.groups())
    assert resources["memory_per_trial"] == pytest.approx(hungriest * 1.1e6, rel=0.01)
    assert resources["auto"] is False
    # A worker holds its interpreter and torch, and a trial of this model not much more.
    assert 1e8 < resources["memory_per_trial"] < 2e9
    trials = load(directory).trials
    assert list(trials.status) == ["completed"] * 2
    assert (trials.peak_memory_bytes < resources["memory_per_trial"]).all()
    # Trained again in this process, without Ray and whatever it was told.
    assert main(["--reproduce", str(directory), "lora-000"]) == 0
    assert "the same numbers in all" in capfd.readouterr().out


def test_a_dry_run_shows_what_was_measured_and_leaves_nothing(experiment: Path, tmp_path: Path) -> None:
    done = run(experiment, "--dry-run", "--methods", "head", environment=CPU)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"measured peaks: head [\d,]+ MB\n", done.stdout)
    assert re.search(r"each trial asks for 1 CPU, [\d.]+ GB of memory", done.stdout)
    assert re.search(r"trials at once: \d+\n", done.stdout)
    assert not (tmp_path / "runs").exists()


def test_a_method_that_runs_out_of_memory_when_tried_is_named(experiment: Path, tmp_path: Path) -> None:
    """Ray's memory monitor, told that next to nothing may be used, kills the worker."""
    monitor = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "50"}
    done = run(experiment, "--methods", "head", environment={**CPU, **monitor})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "auto.yaml: methods.head: its hungriest trial ran out of memory when it was tried" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
