"""What holds on a GPU alone: whose kernels run, and whose memory is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from traceback import clear_frames

import pytest
import torch
from prepared import prepare
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from results.evaluation import Evaluation
from trainables.base_model import BaseModel
from trainables.data import TokenizedData
from trainables.methods import METHODS
from trainables.settings import TrainingSettings
from trainables.setup import TrialSpec
from trainables.trial import TrialInputs, failure_status, run_trial

pytestmark = pytest.mark.cuda

CUDA = torch.device("cuda")
KERNELS = "kDequantizeBlockwise", "gemm_4bit"
"""What the names of bitsandbytes' kernels hold: for large batches, and for small ones."""


@pytest.fixture(scope="module")
def base(model_directories: dict[str, Path], data_files: dict[str, Path]) -> BaseModel:
    return prepare(model_directories["gpt2"], data_files).base


def make_spec(kind: str, **settings: int) -> TrialSpec:
    training = TrainingSettings(epochs=1, learning_rate=1e-3, batch_size=8)
    return TrialSpec("t", kind, kind, 1, METHODS[kind].settings(**settings), training)


def last(spec: TrialSpec, data: TokenizedData, base: BaseModel) -> Evaluation:
    return list(run_trial(TrialInputs(spec, data, base, device=CUDA)))[-1]


def test_qlora_runs_bitsandbytes_cuda_kernels(data: TokenizedData, base: BaseModel) -> None:
    names = {}
    for kind in ("lora", "qlora"):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as traced:
            last(make_spec(kind), data, base)
        names[kind] = [event.name for event in traced.events() if event.device_type == DeviceType.CUDA]
    assert any(kernel in name for name in names["qlora"] for kernel in KERNELS)
    assert not any(kernel in name for name in names["lora"] for kernel in KERNELS)


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_peak_memory_is_the_allocators_and_that_of_this_trial(
    data: TokenizedData, base: BaseModel, kind: str
) -> None:
    last(make_spec(kind), data, base)  # what CUDA's libraries ask the allocator for once, they keep
    alone = last(make_spec(kind), data, base)
    assert alone.peak_memory_source == "cuda_allocator"
    assert alone.peak_memory_bytes is not None
    # The model, and of what is trained a gradient and AdamW's two moments.
    held = alone.model_bytes + 3 * 4 * alone.trainable_parameters
    assert held < alone.peak_memory_bytes < held + 200e6

    large = last(make_spec("lora", rank=20_000), data, base)
    assert large.peak_memory_bytes is not None
    assert large.peak_memory_bytes > alone.peak_memory_bytes + 400e6
    again = last(make_spec(kind), data, base)
    assert again.peak_memory_bytes == pytest.approx(alone.peak_memory_bytes, abs=50e6)
    # What the large one held is there for other processes.
    assert torch.cuda.memory_reserved() < large.peak_memory_bytes - 400e6


def test_a_trial_that_runs_out_of_memory_says_so_and_leaves_nothing(
    data: TokenizedData, base: BaseModel
) -> None:
    last(make_spec("lora"), data, base)
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(400e6 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(torch.OutOfMemoryError) as raised:
            last(make_spec("lora", rank=20_000), data, base)
        assert failure_status(raised.value) == "out_of_memory"
        clear_frames(raised.tb)  # as a worker does
        del raised
        fits = last(replace(make_spec("lora"), trial_id="next"), data, base)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert fits.is_last
    assert torch.cuda.memory_allocated() == pytest.approx(before, abs=50e6)
