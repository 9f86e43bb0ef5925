"""Rebuilding base models: heads, weights that are shared, checkpoints of every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from trainables.base_model import build_model, linear_layer_names
from trainables.checkpoints import load_checkpoint, save_checkpoint
from trainables.methods import METHODS
from trainables.pretrained import load_base
from trainables.settings import ModelSettings
from trainables.setup import wrap_base

LABELS = ("negative", "positive")


def test_the_seed_decides_the_head_and_nothing_else(
    model_directories: dict[str, Path], architecture: str
) -> None:
    base = load_base(ModelSettings(path=str(model_directories[architecture])), LABELS, 0)
    one, same, other = (build_model(base, seed) for seed in (1, 1, 2))
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == (not name.startswith("score")), name


def test_rebuilt_weights_are_views_of_the_shared_ones(
    model_directories: dict[str, Path], architecture: str
) -> None:
    base = load_base(ModelSettings(path=str(model_directories[architecture])), LABELS, 0)
    parameters = dict(build_model(base, seed=1).named_parameters())
    for name, weights in base.weights.items():
        if name in parameters:
            assert parameters[name].data_ptr() == weights.ctypes.data, name


SIZES = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "bart": {
        **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16},
        **{"decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2},
    },
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "multi_query": False},
    "mixtral": {
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
        **{"num_key_value_heads": 1, "num_local_experts": 3},
    },
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_checkpoint_is_in_transformers_what_it_is_here(model_type: str, tmp_path: Path) -> None:
    """Attention of its own, experts, embeddings in several places: of each kind that transformers has."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, num_labels=2, **SIZES, **CONFIGS[model_type])
    if model_type in ("bart", "t5"):
        config.decoder_start_token_id = 0
    plain = AutoModelForSequenceClassification.from_config(config)
    plain.save_pretrained(tmp_path / "base")
    base = load_base(ModelSettings(path=str(tmp_path / "base")), LABELS, 0)
    model = wrap_base(base, "full", METHODS["full"].settings(), 1)
    with torch.no_grad():  # what training could come to
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    save_checkpoint(model, tmp_path / "checkpoint")
    there = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint").eval()
    ids = torch.tensor([[5, 9, 7, 8, 6, 2], [4, 3, 2, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    with torch.no_grad():
        found, expected = model.eval()(**batch).logits, there(**batch).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1:], model(input_ids=ids[1:, :3]).logits, rtol=1e-4, atol=1e-5)
        assert sum(map(torch.numel, model.parameters())) == sum(map(torch.numel, plain.parameters()))
        other = wrap_base(base, "full", METHODS["full"].settings(), 2).eval()
        load_checkpoint(other, tmp_path / "checkpoint")
        assert other(**batch).logits.equal(found)


def test_target_modules_come_from_the_architecture(model_directories: dict[str, Path]) -> None:
    expected = {
        "gpt2": {"c_attn", "c_proj", "c_fc"},
        "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    }
    for architecture, names in expected.items():
        base = load_base(ModelSettings(path=str(model_directories[architecture])), LABELS, 0)
        assert set(linear_layer_names(build_model(base, 0))) == names
