"""Low-rank layers compute what PEFT's own compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.bnb import Linear4bit
from peft.tuners.lora.layer import Linear
from torch import nn

from trainables.methods.lora import LoraSettings
from trainables.methods.low_rank_layers import FastLinear, FastLinear4bit
from trainables.pretrained import load_base
from trainables.settings import ModelSettings
from trainables.setup import wrap_base


def outputs_and_gradients(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # of dropout
    logits = model(input_ids=ids).logits
    model.zero_grad()
    (logits * torch.arange(logits.numel()).view_as(logits)).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach(), **grads}


def adapted_model(kind: str, dropout: float, directory: Path) -> PeftModel:
    """Return a model whose adapters do something."""
    base = load_base(ModelSettings(path=str(directory)), ["no", "yes"], 0)
    model = wrap_base(base, kind, LoraSettings(rank=4, alpha=6, dropout=dropout), seed=1)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:  # which start at what makes the adapter do nothing
            parameter.data += 0.1 * torch.randn_like(parameter)
    assert any(isinstance(module, FastLinear | FastLinear4bit) for module in model.modules())
    assert isinstance(model, PeftModel)
    return model


def slow_down(model: nn.Module) -> None:
    """Give the low-rank layers PEFT's own forward pass back."""
    for module in model.modules():
        if isinstance(module, FastLinear | FastLinear4bit):
            module.__class__ = Linear if isinstance(module, FastLinear) else Linear4bit


@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_outputs_and_gradients_are_those_of_peft(
    kind: str, dropout: float, architecture: str, model_directories: dict[str, Path]
) -> None:
    model = adapted_model(kind, dropout, model_directories[architecture])
    ids = torch.randint(1, model.config.vocab_size, (3, 7))
    found = outputs_and_gradients(model.train(), ids)
    slow_down(model)
    expected = outputs_and_gradients(model, ids)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4 * tensor.abs().max().item())
