"""Low-rank layers give what PEFT's own give, and so do their gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from peft.tuners.lora.bnb import Linear4bit
from peft.tuners.lora.layer import Linear
from torch import nn

from tests.conftest import make_model
from trainables.methods.lora import LoraSettings, wrap_low_rank
from trainables.methods.low_rank_layers import FastLinear, FastLinear4bit
from trainables.methods.qlora import quantize

PLAIN = {FastLinear: Linear, FastLinear4bit: Linear4bit}


def as_peft_has_it(model: nn.Module) -> nn.Module:
    """Give a copy of a model its low-rank layers' own class back."""
    plain = copy.deepcopy(model)
    replaced = [module for module in plain.modules() if type(module) in PLAIN]
    assert replaced
    for module in replaced:
        module.__class__ = PLAIN[type(module)]
    return plain


def outcome(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the last hidden layer for fixed tokens, and its sum's gradients by parameter."""
    torch.manual_seed(0)  # of dropout
    tokens = torch.arange(12).view(2, 6) % 10
    hidden = model(input_ids=tokens, output_hidden_states=True).hidden_states[-1]
    hidden.cos().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return hidden.detach(), gradients


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["lora", "dora", "qlora"])
def test_outputs_and_gradients_are_those_of_peft(architecture: str, kind: str, dropout: float) -> None:
    model = make_model(architecture)
    if kind == "qlora":
        quantize(model)
    settings = LoraSettings(rank=4, alpha=8, dropout=dropout)
    ours = wrap_low_rank(model, settings, use_dora=kind == "dora").train()
    for name, parameter in ours.named_parameters():
        if "lora_B" in name or "magnitude" in name:  # as after some training
            nn.init.normal_(parameter, mean=0.5 if "magnitude" in name else 0.0, std=0.1)
    expected, expected_gradients = outcome(as_peft_has_it(ours))
    found, gradients = outcome(ours)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys() != set()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-4, msg=name)
