"""Whole runs of the command on a GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import runs
import torch

from orchestrator.reproduce import reproduce
from results import load

pytestmark = pytest.mark.cuda

BYTES_PER_RANK = 4 * 2048
"""Of the tiny GPT-2's adapters: inputs and outputs of all its linear layers."""


@pytest.fixture
def experiment(tmp_path: Path, model_directories: dict[str, Path], data_files: dict[str, Path]) -> Path:
    return runs.write_experiment(
        tmp_path,
        model_directories["gpt2"],
        data_files,
        name="gpu",
        search={"trials": 2, "sampler": "random", "early_stopping": "none"},
        methods={"head": {}, "full": {}, "lora": {}, "dora": {}, "qlora": {}},
    )


def run(experiment: Path, *settings: str, arguments: tuple[str, ...] = ()) -> tuple[str, pd.DataFrame]:
    """Run the command; return what it printed, and the trials."""
    out = runs.finish(runs.start(experiment, *arguments, *runs.settings(*settings)))
    return out, load(experiment.parent / "runs" / "gpu").trials


def most_at_once(trials: pd.DataFrame) -> int:
    """Return how many trials ran at the same time, at most."""
    starts, ends = trials.started_at, trials.ended_at
    return max(int(((starts <= start) & (ends > start)).sum()) for start in starts)


def test_two_trials_share_a_gpu(experiment: Path) -> None:
    _, trials = run(experiment, "resources.gpus_per_trial=0.5", "resources.max_concurrent=2")
    assert set(trials.status) == {"completed"}
    assert trials.device.str.startswith("cuda:").all()
    assert set(trials.peak_memory_source) == {"cuda_allocator"}
    assert most_at_once(trials) == 2
    # The allocator's figure is of the trial alone: a head's is smaller, whatever the process trained before.
    peaks = trials.groupby("method").peak_memory_bytes.max()
    assert peaks["head"] < peaks["full"]
    # Again, in this process: the last digits may differ.
    again = reproduce(str(experiment.parent / "runs" / "gpu"), "lora-000", print)
    assert again.evaluations == trials.set_index("trial_id").evaluations["lora-000"]
    assert not [line for line in again.differences if ": tokens was" in line]
    for line in again.differences:
        was, now = map(float, re.findall(r"(?:was|is) ([\d.e-]+)", line))
        assert now == pytest.approx(was, rel=1e-2), line


def test_a_trial_that_runs_out_of_memory_is_a_row_and_its_process_goes_on(experiment: Path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    rank = int(2 * 0.01 * total / BYTES_PER_RANK)  # weighs twice what a hundredth of the GPU holds
    settings = ("resources.gpus_per_trial=0.01", "resources.max_concurrent=1", "search.trials=1")
    huge = f'methods.huge={{"kind": "lora", "rank": {rank}}}'
    out, trials = run(experiment, *settings, huge, arguments=("--methods", "head,huge,qlora"))
    trials = trials.set_index("method")
    assert trials.status.to_dict() == {"head": "completed", "huge": "out_of_memory", "qlora": "completed"}
    assert trials.error["huge"].startswith("OutOfMemoryError: CUDA out of memory")
    assert trials.retries.sum() == 0
    assert "1 failed" in out


def test_auto_measures_the_gpu_and_trials_keep_to_what_they_asked_for(experiment: Path) -> None:
    out, trials = run(experiment, "search.trials=1", "resources=auto", arguments=("--methods", "head,lora"))
    assert re.search(r"measured peaks: head [\d,]+ MB and [\d,]+ MB of GPU memory", out)
    assert re.search(r"each trial asks for .* GPUs \(\d+ trials a GPU\)", out)
    assert trials.device.str.startswith("cuda:").all()
    part = json.loads(trials.settings[0])["experiment"]["resources"]["gpus_per_trial"]
    total = torch.cuda.get_device_properties(0).total_memory
    assert (trials.peak_memory_bytes < part * total).all()


def test_a_trial_that_asks_for_no_gpu_trains_on_the_cpu_and_the_command_says_so(experiment: Path) -> None:
    out, trials = run(experiment, "search.trials=1", arguments=("--methods", "head"))
    assert set(trials.device) == {"cpu"}
    assert "GPUs are not used" in out
