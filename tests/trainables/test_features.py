"""Features of a frozen base, held against the forward pass that they spare."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from decoders import PAD, tiny
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from trainables.batches import batches
from trainables.data import TokenizedSplit
from trainables.features import remember_features
from trainables.last_tokens import narrow_last_block
from trainables.parallel import ALONE, Group
from trainables.scoring import Scores, evaluate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split() -> TokenizedSplit:
    """Ten texts of one to ten tokens."""
    lengths = np.arange(1, 11)
    return TokenizedSplit(
        tokens=np.random.default_rng(0).integers(3, 50, lengths.sum()).astype(np.int32),
        offsets=np.concatenate([[0], lengths.cumsum()]),
        labels=np.arange(10) % 3,
        example_ids=np.arange(10),
    )


def head_only(model_type: str) -> PreTrainedModel:
    model = tiny(model_type)
    model.base_model.requires_grad_(False)
    narrow_last_block(model)
    return model


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_later_evaluations_are_those_of_the_whole_pass_and_spare_it(
    model_type: str, split: TokenizedSplit
) -> None:
    model = head_only(model_type)
    features = remember_features(model, ALONE)
    assert features is not None
    passes: list[torch.nn.Module] = []
    model.base_model.register_forward_hook(lambda module, arguments, output: passes.append(module))

    def scores(remembers: bool) -> Scores:
        cut = batches(split, 4, PAD)
        return evaluate(model, cut, split.labels, CPU, features=features if remembers else None)

    for _ in range(3):
        found = scores(remembers=True)
        assert len(passes) == 3
        np.testing.assert_allclose(found.logits, scores(remembers=False).logits, rtol=1e-4, atol=1e-6)
        del passes[3:]
        torch.nn.init.normal_(model.score.weight)  # as a step of training changes it


def test_in_bfloat16_they_are_those_of_the_whole_pass_too(split: TokenizedSplit) -> None:
    model = head_only("gpt2")
    features = remember_features(model, ALONE)
    cut = list(batches(split, 4, PAD))
    found = evaluate(model, cut, split.labels, CPU, torch.bfloat16, features=features)
    expected = evaluate(model, cut, split.labels, CPU, torch.bfloat16)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0.02, atol=0.02)


def test_nothing_is_remembered_of_a_base_that_changes_or_that_others_have_a_part_of() -> None:
    assert remember_features(tiny("gpt2"), ALONE) is None
    adapted = get_peft_model(tiny("gpt2"), LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    assert remember_features(adapted, ALONE) is None
    assert remember_features(head_only("gpt2"), Group(0, 2, "fsdp")) is None
