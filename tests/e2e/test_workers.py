"""Trials that several workers of Ray Train train together, as a user runs them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import psutil
import pytest
from runs import (
    assert_no_files_left,
    assert_undisturbed,
    evaluations,
    finish,
    settings,
    start,
    wait_for,
    write_experiment,
)

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


def train_worker_of(pid: int) -> psutil.Process | None:
    """Return one of the processes that train a run's trial."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "RayTrainWorker" in " ".join(child.cmdline()):
                return child
    return None


def test_two_workers_give_the_results_of_one_also_when_one_of_them_is_killed(
    experiment: Path, tmp_path: Path
) -> None:
    process = start(experiment, "--methods", "lora", *settings("resources.workers_per_trial=2"))
    directory = tmp_path / "runs" / "small"
    wait_for(lambda: evaluations(directory, "lora-000") >= 3)
    wait_for(lambda: train_worker_of(process.pid)).kill()
    finish(process)
    assert_undisturbed(directory, tolerance=1e-4)
    assert_no_files_left(directory)
    trials = load(directory).trials.set_index("trial_id")
    assert trials.retries.to_dict() == {"lora-000": 1, "lora-001": 0, "lora-seed0": 0}
    assert (trials.status[["lora-000", "lora-seed0"]] == "completed").all()
    assert trials.status["lora-001"] in ("completed", "stopped")


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
