from __future__ import annotations

import sys

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from trainables.measure import count_parameters, model_bytes, peak_memory, reset_peak_memory
from trainables.methods.qlora import quantize

GIB = 2**30


@pytest.mark.skipif(sys.platform != "linux", reason="the process's high-water mark is Linux's")
def test_peak_memory_is_that_since_the_reset() -> None:
    cpu = torch.device("cpu")
    torch.ones(100_000_000 // 4).sum()
    reset_peak_memory(cpu)
    low, source = peak_memory(cpu)
    block = torch.ones(200_000_000 // 4)
    high, _ = peak_memory(cpu)
    del block
    reset_peak_memory(cpu)
    again, _ = peak_memory(cpu)
    assert source == "process_high_water"
    assert low is not None
    assert high is not None
    assert again is not None
    assert 180e6 < high - low < 260e6
    assert again < high - 150e6


def test_nf4_cuts_gpt2_large_by_84_percent() -> None:
    """The founding study's figures: 2.88 GB to 0.46 GB."""
    config = GPT2Config(n_embd=1280, n_layer=36, n_head=20, num_labels=2, pad_token_id=0)
    with torch.device("meta"):
        model = GPT2ForSequenceClassification(config)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.05, 0.05)
    full = model_bytes(model)
    parameters = count_parameters(model)[1]
    quantize(model)
    quantized = model_bytes(model)
    packed = sum(p.numel() for p in model.parameters() if hasattr(p, "quant_state"))
    # bitsandbytes' NF4 covers linear layers: with fp32 embeddings of 50,257 tokens this is what is left.
    assert count_parameters(model)[1] == parameters
    assert round(full / GIB, 2) == 2.88
    assert round(packed / GIB, 2) == 0.33
    assert round(quantized / GIB, 2) == 0.59
