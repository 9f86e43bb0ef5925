"""Trials that several workers of Ray Train train together, as a user runs them."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from runs import finish, settings, start, write_experiment

from results import load


@pytest.fixture
def experiment(tmp_path: Path, model_directories: dict[str, Path], data_files: dict[str, Path]) -> Path:
    """Llama has no dropout, so that the workers' random numbers make no difference."""
    return write_experiment(
        tmp_path,
        model_directories["llama"],
        data_files,
        training={"epochs": 6, "batch_size": 9},
        search={"trials": 2, "sampler": "random", "reduction_factor": 2},
        confirm={"seeds": 1},
        methods={"full": {}, "lora": {"rank": 2}},
        resources={"max_concurrent": 1},
    )


def kill_a_train_worker(pid: int, journal: Path, evaluations: int) -> None:
    """Kill one of the processes that train a trial once it has made some evaluations."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if journal.exists() and len(json.loads(journal.read_text())["metrics"]) >= evaluations:
            for child in psutil.Process(pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    if "RayTrainWorker" in " ".join(child.cmdline()):
                        child.kill()
                        return
        time.sleep(0.02)
    raise AssertionError("no train worker was killed")


def test_two_workers_give_the_results_of_one_also_when_one_of_them_is_killed(
    experiment: Path, tmp_path: Path
) -> None:
    finish(start(experiment, "--name", "one", "--methods", "lora"))
    two = start(experiment, "--name", "two", "--methods", "lora", "--set", "resources.workers_per_trial=2")
    directory = tmp_path / "runs" / "two"
    kill_a_train_worker(two.pid, directory / "journal" / "lora-000.json", evaluations=3)
    finish(two)

    one, both = load(tmp_path / "runs" / "one"), load(directory)
    expected, found = (results.trials.set_index("trial_id").sort_index() for results in (one, both))
    exact = ["method", "phase", "seed", "status", "evaluations", "best_evaluation", "steps", "examples"]
    exact += ["tokens", "validation_accuracy", "test_accuracy", "trainable_parameters", "model_bytes"]
    pd.testing.assert_frame_equal(found[exact], expected[exact])
    assert found.retries.to_dict() == {name: int(name == "lora-000") for name in found.index}
    curve = ["trial_id", "evaluation", "train_loss", "validation_loss"]
    curves = [results.metrics[curve].sort_values(curve[:2], ignore_index=True) for results in (one, both)]
    pd.testing.assert_frame_equal(curves[1], curves[0], rtol=1e-4)
    kept = [
        results.checkpoints.set_index("trial_id")[["kind", "bytes"]].sort_index() for results in (one, both)
    ]
    pd.testing.assert_frame_equal(*kept)
    assert not list((directory / "states").rglob("state.safetensors"))


def test_a_model_in_parts_is_trained_and_what_diverges_is_a_row(experiment: Path, tmp_path: Path) -> None:
    values = [
        *settings("resources.workers_per_trial=2", "resources.parallelism=fsdp", "search.trials=1"),
        *settings("confirm.seeds=0", "training.epochs=2"),
        *settings('methods.wild={"kind": "full", "learning_rate": 1e30}'),
    ]
    out = finish(start(experiment, *values, "--methods", "wild,full"))
    trials = load(tmp_path / "runs" / "small").trials.set_index("method")
    assert trials.status.to_dict() == {"wild": "diverged", "full": "completed"}
    assert trials.retries.sum() == 0
    assert "loss became nan" in trials.error["wild"]
    assert "1 failed" in out
    said = (tmp_path / "runs" / "small" / "log.txt").read_text()
    assert len(set(re.findall(r"_Controller pid=(\d+)", said))) == 1, "a trial that diverges ends no process"
