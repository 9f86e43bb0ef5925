"""Decoders so small that a test can have one of each architecture."""

from __future__ import annotations

from functools import cache

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
)

from trainables.attention import let_draw_ahead
from trainables.dropout import Masks

PAD = 0


def tiny(model_type: str) -> PreTrainedModel:
    """Make a classification model with random weights, the same every time."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    if model_type == "gpt2":
        sizes = {
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 64,
            "resid_pdrop": 0,
            "attn_pdrop": 0,
        }
        sizes |= {"embd_pdrop": 0}
    config = AutoConfig.for_model(
        model_type, vocab_size=50, pad_token_id=PAD, bos_token_id=1, eos_token_id=2, num_labels=3, **sizes
    )
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model


def dropping_gpt2(**shares: float) -> PreTrainedModel:
    """Make a GPT-2 that trains and may draw its masks ahead, with what it drops as its config names it."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
        **shares,
    )
    model = GPT2ForSequenceClassification(config).train()
    let_draw_ahead(model)
    return model


@cache
def no_masks() -> Masks:
    """Return the masks of a model that drops nothing, for one that draws its masks where it needs them."""
    return Masks(tiny("gpt2"), 1)
