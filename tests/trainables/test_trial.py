"""A trial's own rules: where it evaluates, how it fails, what real models and data make of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prepared import prepare

from trainables.errors import DivergedError
from trainables.methods import METHODS
from trainables.settings import TrainingSettings
from trainables.setup import TrialSpec
from trainables.trial import TrialInputs, evaluation_steps, failure_status, run_trial

MORE_THAN_ANY_MACHINE_HAS = 10**15


@given(st.integers(1, 10_000), st.integers(1, 200))
def test_evaluations_are_spread_evenly_and_end_with_the_last_step(steps: int, evaluations: int) -> None:
    points = evaluation_steps(steps, evaluations)
    assert points[-1] == steps
    assert len(points) == min(steps, evaluations)
    gaps = [after - before for before, after in zip([0, *points], points, strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1


def test_running_out_of_memory_is_told_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(MORE_THAN_ANY_MACHINE_HAS, dtype=torch.float64)
    assert failure_status(raised.value) == "out_of_memory"
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2) @ torch.ones(3)
    assert failure_status(raised.value) == "failed"
    assert failure_status(MemoryError()) == "out_of_memory"
    # What CUDA and cuBLAS say where a GPU has no room for their own needs.
    assert failure_status(torch.AcceleratorError("CUDA error: out of memory")) == "out_of_memory"
    refused = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert failure_status(refused) == "out_of_memory"
    assert failure_status(torch.AcceleratorError("CUDA error: device-side assert triggered")) == "failed"
    assert failure_status(DivergedError("the loss became nan")) == "diverged"


@pytest.mark.parametrize("model", ["gpt2-mini-reviews", "stories260k-llama"])
@pytest.mark.parametrize("kind", sorted(METHODS))
def test_real_pretrained_models_learn_real_sentences(
    shared: Path, model: str, kind: str, device: torch.device
) -> None:
    sst2 = shared / "data" / "sst2"
    files = {"train": sst2 / "train.tsv", "validation": sst2 / "dev.tsv", "test": sst2 / "test.tsv"}
    limits = {"max_train_examples": 256, "max_validation_examples": 64}
    data, _, base = prepare(shared / "models" / model, files, **limits)
    training = TrainingSettings(epochs=2, learning_rate=3e-3 if kind != "full" else 3e-4, batch_size=16)
    spec = TrialSpec("t", kind, kind, 1, METHODS[kind].settings(), training)
    points = list(run_trial(TrialInputs(spec, data, base, device=device)))
    assert points[-1].train_loss < points[0].train_loss
    assert all(math.isfinite(point.validation_loss) for point in points)
