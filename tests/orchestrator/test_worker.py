"""What becomes of a trial, and of its worker's process, when a GPU fails: PyTorch's own errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator.reports import ERROR, STATUS
from orchestrator.settings import ResourceSettings
from orchestrator.shell import ProcessDiedError
from orchestrator.worker import TrialWorker, trial_device


class Failing:
    """A trial whose training raises an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def advance(self) -> None:
        raise self._error

    def close(self) -> None:
        pass


def test_a_worker_that_asks_for_a_gpu_and_finds_none_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(RuntimeError, match=r"asks for 0\.5, and PyTorch .* finds no GPU on"):
        trial_device(ResourceSettings(gpus_per_trial=0.5))
    assert trial_device(ResourceSettings()) == torch.device("cpu")


def step(error: Exception) -> dict[str, Any]:
    worker = TrialWorker.__new__(TrialWorker)  # without Tune's parts, which take a running Ray
    worker._process, worker._title = Failing(error), "lora-000"
    return worker.step()


def test_a_process_whose_gpu_failed_trains_nothing_more() -> None:
    with pytest.raises(ProcessDiedError, match="device-side assert"):
        step(torch.AcceleratorError("CUDA error: device-side assert triggered"))


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_process_whose_gpu_had_no_room_goes_on(kind: type[RuntimeError]) -> None:
    report = step(kind("CUDA error: out of memory"))
    assert report[STATUS] == "out_of_memory"
    assert report[ERROR].endswith("Error: CUDA error: out of memory")
    assert report["done"]
