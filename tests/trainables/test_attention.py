"""Attention that drops as it is told is what its formula says, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
from decoders import dropping_gpt2
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainables.attention import attend
from trainables.dropout import draw_ahead

TEXTS, HEADS, TOKENS, WIDTH, P = 3, 4, 7, 5, 0.25
EARLIER = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
PADDED = (torch.arange(TOKENS) < torch.tensor([7, 4, 1])[:, None])[:, None, None] & EARLIER


class Told(nn.Module):
    """An attention that has been given a mask."""

    def __init__(self, mask: torch.Tensor, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.next_mask = lambda: (mask, 1 / (1 - P))


def formula(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Compute Vaswani et al. 2017, section 3.2.1, ``[texts, tokens, heads, width]``."""
    groups = HEADS // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    weights = (query @ key.mT / WIDTH**0.5).masked_fill(~seen, -torch.inf).softmax(dim=-1)
    return (weights * kept @ value).transpose(1, 2)


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize(("queries", "groups"), [(TOKENS, 1), (TOKENS, 2), (1, 1)])
def test_outputs_and_gradients(is_given: bool, queries: int, groups: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [(HEADS, queries), (HEADS // groups, TOKENS), (HEADS // groups, TOKENS)]
    # As layers make them: [texts, tokens, heads, width], transposed.
    inputs = [torch.randn(TEXTS, tokens, heads, WIDTH, generator=generator) for heads, tokens in sizes]
    drawn = torch.rand(TEXTS, HEADS, queries, TOKENS, generator=generator) > P
    seen = PADDED if is_given else EARLIER
    seen = seen[..., -queries:, :] if queries > 1 or is_given else torch.ones(1, TOKENS, dtype=torch.bool)
    results = []
    for ours in (True, False):
        leaves = [one.to(device).requires_grad_() for one in inputs]
        attended = [one.transpose(1, 2) for one in leaves]
        if ours:
            told = Told(drawn[None].to(device), groups)
            output, _ = attend(told, *attended, seen.to(device) if is_given else None, dropout=P)
        else:
            output = formula(*attended, seen.to(device), drawn.to(device) / (1 - P))
        weighed = output * torch.linspace(-1, 1, WIDTH, device=device)
        weighed.square().sum().backward()
        results.append([output, *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert results[0][0].is_contiguous()


def test_a_token_that_sees_nothing_harms_no_other(device: torch.device) -> None:
    """As padding whose whole window is padding."""
    torch.manual_seed(0)
    leaves = [torch.randn(1, HEADS, TOKENS, WIDTH, device=device, requires_grad=True) for _ in range(3)]
    seen = EARLIER.clone()[None, None].to(device)
    seen[..., 3, :] = False
    kept = torch.ones(1, HEADS, TOKENS, TOKENS, dtype=torch.bool, device=device)
    output, _ = attend(Told(kept, 1), *leaves, seen, dropout=P)
    rest = [token for token in range(TOKENS) if token != 3]
    expected = formula(*leaves, EARLIER.to(device), kept / (1 - P))
    torch.testing.assert_close(output[:, rest], expected[:, rest], rtol=1e-4, atol=1e-5)
    output.sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("has_rotated", [False, True])
def test_bfloat16(has_rotated: bool, device: torch.device) -> None:
    """By autocast, which ends before the backward pass; softmax is in float32 there.

    Rotary embeddings in float32 make float32 of queries and keys.
    """
    torch.manual_seed(0)
    inputs = [torch.randn(TEXTS, HEADS, TOKENS, WIDTH, device=device) for _ in range(3)]
    kept = torch.rand(TEXTS, HEADS, TOKENS, TOKENS, device=device) > P
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [one.to(dtype).requires_grad_() for one in inputs]
        if has_rotated and dtype == torch.bfloat16:
            leaves[:2] = [one.detach().float().requires_grad_() for one in leaves[:2]]
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            if dtype == torch.bfloat16:
                output, _ = attend(Told(kept, 1), *leaves, None, dropout=P)
                assert output.dtype == dtype
            else:
                output = formula(*leaves, EARLIER.to(device), kept / (1 - P))
        output.float().square().sum().backward()
        results.append([one.float() for one in (output, *(leaf.grad for leaf in leaves))])
    torch.testing.assert_close(*results, rtol=0.05, atol=0.1)


def test_attention_without_a_mask_is_causal() -> None:
    model = dropping_gpt2(attn_pdrop=1e-9, embd_pdrop=0.0, resid_pdrop=0.0)
    assert draw_ahead(model, 9).is_of_use
    whole = {"input_ids": torch.randint(1, 50, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    with torch.no_grad():
        found = model(**whole).logits
        with sdpa_kernel(SDPBackend.MATH):
            expected = model.eval()(**whole).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
