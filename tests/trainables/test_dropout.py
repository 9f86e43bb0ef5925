"""Masks that are drawn ahead drop as PyTorch's dropout does."""

from __future__ import annotations

import pytest
import torch
from decoders import dropping_gpt2, tiny
from torch import nn
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from trainables import dropout
from trainables.attention import let_draw_ahead
from trainables.dropout import SHORT_TEXT, Masks, draw_ahead
from trainables.dropout_sites import MaskKind

P = 0.25


def gpt2(**changed: float) -> PreTrainedModel:
    return dropping_gpt2(**{"attn_pdrop": P, "embd_pdrop": P, "resid_pdrop": P, **changed})


def texts() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (6, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 4, 1, 7, 6, 9])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def test_what_is_dropped_is_found() -> None:
    masks = draw_ahead(gpt2(), 9)
    assert masks.is_of_use
    hidden, weights = MaskKind(P, (None, 32), False), MaskKind(P, (4, None, None), False)
    assert masks.counts == {hidden: 1 + 2 * 2, weights: 2}


def test_logits_are_in_the_mean_those_of_pytorch() -> None:
    """Of 400 passes each, whose masks have nothing to do with each other."""
    means, deviations = [], []
    for ahead in (False, True):
        model = gpt2()
        if ahead:
            draw_ahead(model, 9)
        torch.manual_seed(2)
        with torch.no_grad():
            logits = torch.stack([model(**texts()).logits for _ in range(400)])
        means.append(logits.mean(dim=0))
        deviations.append(logits.std(dim=0))
    error = (deviations[0].square() + deviations[1].square()).sqrt() / 400**0.5
    assert ((means[0] - means[1]).abs() < 4.5 * error).all()
    torch.testing.assert_close(*deviations, rtol=0.2, atol=0)
    assert deviations[0].min() > 0.01


class Wrapped(nn.Module):
    """Takes texts as a model does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(input_ids[..., None] * self.weight)
        return result


def test_the_share_that_is_dropped_and_what_scales_the_rest(device: torch.device) -> None:
    module = nn.Dropout(P)
    masks = Masks(Wrapped(module).to(device), 100)
    torch.manual_seed(3)
    masks.draw(50, 100, device)
    values = torch.ones(50, 100, 8, device=device, requires_grad=True)
    kept = module(values)
    kept.sum().backward()
    assert values.grad is not None
    assert values.grad.equal(kept), "what is kept of a gradient is what is kept of its value"
    kept = kept.detach().cpu()
    assert kept.unique().tolist() == [0, pytest.approx(1 / (1 - P))]
    assert (kept == 0).float().mean() == pytest.approx(P, abs=0.01)
    assert kept.mean() == pytest.approx(1, abs=0.01)
    assert module.eval()(torch.ones(2, 3, 8, device=device)).eq(1).all()


@pytest.mark.parametrize("most_at_once", [dropout.MOST_AT_ONCE, 100])
def test_what_is_drawn_does_not_depend_on_where_it_lies(
    most_at_once: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout, "MOST_AT_ONCE", most_at_once)
    alone = torch.empty(3, 4, 5, 70, dtype=torch.bool, device=device)
    among = torch.zeros(3, 2, 6, 8, 70, dtype=torch.bool, device=device)[:, 1, :4, :5]
    masks = []
    for mask in (alone, among):
        dropout.draw(mask, P, torch.Generator(device).manual_seed(4))
        masks.append(mask.cpu())
    assert masks[0].equal(masks[1])
    assert 0 < masks[0].float().mean() < 1


def test_gradients_are_those_of_the_same_masks() -> None:
    """With masks that keep all, and a factor of 1, it is the model without dropout."""
    least = 1e-12
    found = gpt2(attn_pdrop=least, embd_pdrop=least, resid_pdrop=least)
    expected = gpt2(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    masks = Masks(found, 9)
    all_kept = {k: torch.ones(n, 1, 6, *k.sizes(9), dtype=torch.bool) for k, n in masks.counts.items()}
    masks.put(all_kept)
    for model in (found, expected):
        model(**texts()).logits.square().sum().backward()
    gradients = [{n: one.grad for n, one in model.named_parameters()} for model in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_long_texts_are_left_to_pytorch_where_attention_drops() -> None:
    masks = draw_ahead(gpt2(), SHORT_TEXT + 1)
    assert masks.counts
    assert not masks.is_of_use
    assert draw_ahead(gpt2(attn_pdrop=0.0), SHORT_TEXT + 1).is_of_use


def test_what_drops_twice_is_left_to_pytorch_where_activations_are_computed_again() -> None:
    config = RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = RobertaForSequenceClassification(config).train()
    assert draw_ahead(model, 9).is_of_use
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert not draw_ahead(model, 9).is_of_use


@pytest.mark.parametrize("model_type", ["llama", "gemma"])
def test_a_model_that_drops_nothing_stays_as_it_is(model_type: str) -> None:
    model = tiny(model_type).train()
    let_draw_ahead(model)
    assert not draw_ahead(model, 9).counts
    assert not model._forward_pre_hooks


def test_a_head_that_reads_the_end_of_text_finds_one() -> None:
    config = BartConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16
    )
    config.encoder_attention_heads = config.decoder_attention_heads = 2
    model = BartForSequenceClassification(config).train()
    assert not draw_ahead(model, 9).counts, "it drops by no module"
