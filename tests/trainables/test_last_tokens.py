"""The last block computed of what heads read only, held against transformers' own forward pass."""

from __future__ import annotations

import pytest
import torch
from decoders import PAD, tiny
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaForSequenceClassification

from trainables.last_tokens import DECODERS, last_attention, last_mlp, narrow_last_block, read_tokens


def texts() -> dict[str, torch.Tensor]:
    """Texts of several lengths; one ends with the padding token, as where the end of text pads, too."""
    torch.manual_seed(1)
    ids = torch.randint(3, 50, (5, 9))
    mask = (torch.arange(9) < torch.tensor([9, 4, 1, 7, 6])[:, None]).long()
    ids[mask == 0] = PAD
    ids[3, 6] = PAD
    return {"input_ids": ids, "attention_mask": mask}


def logits_and_gradients(model: torch.nn.Module, **changed: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the logits of :func:`texts`, and of some loss the gradient of each parameter."""
    logits = model(**(texts() | changed)).logits
    logits.logsumexp(dim=1).square().sum().backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    return {"logits": logits.detach(), **gradients}


@pytest.mark.parametrize("model_type", DECODERS)
def test_logits_and_gradients_are_those_of_the_whole_pass(model_type: str) -> None:
    model = tiny(model_type)
    expected = logits_and_gradients(model)
    model.zero_grad()
    narrow_last_block(model)
    mlp, seen = last_mlp(model), []
    assert mlp is not None
    mlp.register_forward_hook(lambda module, arguments, output: seen.append(output.shape))
    found = logits_and_gradients(model)
    assert seen == [(5, 1, 32)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert expected["logits"].abs().min() > 0


@pytest.mark.parametrize("masked", [True, False])
def test_what_the_last_token_attends_to_is_computed_of_no_other(masked: bool) -> None:
    """Without a mask, the head reads one before the padding token that a text may end with."""
    changed = {} if masked else {"attention_mask": torch.ones(5, 9, dtype=torch.long)}
    model, seen = tiny("gpt2"), []
    expected = logits_and_gradients(model, **changed)
    model.zero_grad()
    narrow_last_block(model)
    attention = last_attention(model)
    assert attention is not None
    attention.register_forward_hook(lambda module, arguments, output: seen.append(output[0].shape))
    found = logits_and_gradients(model, **changed)
    assert seen == [(5, 1, 32)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])  # what computes attention differently needs masks
def test_no_attention_builds_a_mask_for_padding_that_comes_last(model_type: str) -> None:
    model, seen = tiny(model_type), []
    narrow_last_block(model)
    for module in model.modules():
        if type(module).__name__.endswith("Attention"):
            module.register_forward_pre_hook(
                lambda module, arguments, options: seen.append(options["attention_mask"]), with_kwargs=True
            )
    model(**texts())
    assert seen == [None] * 3


def test_adapters_get_the_gradients_of_the_whole_pass() -> None:
    def adapted() -> torch.nn.Module:
        torch.manual_seed(2)
        config = LoraConfig(
            init_lora_weights=False, r=2, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
        )
        return get_peft_model(tiny("gpt2"), config)

    model = adapted()
    narrow_last_block(model.get_base_model())
    found, expected = logits_and_gradients(model), logits_and_gradients(adapted())
    assert len(found) == 1 + 2 * 4 * 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_whoever_asks_the_base_itself_gets_all_tokens_also_after_an_error() -> None:
    model = tiny("gpt2")
    narrow_last_block(model)
    with pytest.raises(IndexError):
        model(input_ids=torch.full((2, 3), 99))
    mlp, seen = last_mlp(model), []
    assert mlp is not None
    mlp.register_forward_hook(lambda module, arguments, output: seen.append(output.shape))
    model.base_model(**texts())
    assert seen == [(5, 9, 32)]


def test_an_encoder_is_left_as_it_is() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **sizes))
    assert last_mlp(model) is None
    narrow_last_block(model)
    assert not model._forward_pre_hooks


def test_a_class_that_came_with_a_model_is_left_as_it_is() -> None:
    class Own(LlamaForSequenceClassification):
        """As ``trust_remote_code`` brings along: it may read whatever it likes."""

    model = Own(tiny("llama").config)
    narrow_last_block(model)
    assert not model._forward_pre_hooks


def test_the_token_read_is_the_last_that_is_no_padding() -> None:
    ids = torch.tensor([[3, 4, 5], [3, PAD, PAD], [3, PAD, 4], [PAD, PAD, PAD]])
    assert read_tokens(ids, PAD).tolist() == [2, 0, 2, 0]
