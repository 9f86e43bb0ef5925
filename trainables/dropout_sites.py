"""Finds where a model has dropout, by passing a text through it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from trainables.precision import computing_in

DRAWN_AHEAD = "sdpa_with_drawn_dropout"
"""The name under which transformers finds :func:`trainables.attention.attend`."""

_TEXTS, _TOKENS = 2, 5
"""The shape of the input that shows where a model has dropout: any numbers but 1."""


@dataclass(frozen=True)
class MaskKind:
    """Masks that are drawn together."""

    p: float  # the share that is dropped
    shape: tuple[int | None, ...]  # of one text's; None is the number of tokens of the batch's longest text
    of_adapters: bool  # on the inputs of adapters, not in the base

    def sizes(self, longest: int) -> tuple[int, ...]:
        """Return the shape for texts padded to a length."""
        return tuple(longest if size is None else size for size in self.shape)


@dataclass
class DropoutSites:
    """Where a model has dropout."""

    counts: Counter[MaskKind] = field(default_factory=Counter)  # in the order in which masks are drawn
    # By module, for each of its calls: the kind of its mask, and its index among these.
    of_module: defaultdict[nn.Module, list[tuple[MaskKind, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    attention: set[nn.Module] = field(default_factory=set)  # those modules that drop attention weights
    are_known: bool = True  # whether each dropped value belongs to a known text

    def note(self, module: nn.Module, p: float, of_adapters: bool, values: torch.Tensor) -> torch.Tensor:
        """Note that a module drops a share ``p`` of values, ``[texts, ...]``; return them as they are."""
        self.are_known &= len(values) == _TEXTS
        # Hidden states are [texts, tokens, width], attention weights are [texts, heads, tokens, tokens].
        of_tokens = {3: (1,), 4: (2, 3)}.get(values.ndim, ())
        sizes = enumerate(values.shape[1:], start=1)
        shape = tuple(None if place in of_tokens and size == _TOKENS else size for place, size in sizes)
        kind = MaskKind(p, shape, of_adapters)
        self.of_module[module].append((kind, self.counts[kind]))
        self.counts[kind] += 1
        return values

    def note_attention(self, module: nn.Module, p: float, weights: torch.Tensor) -> None:
        """Note that a module drops a share ``p`` of its attention weights."""
        self.attention.add(module)
        self.note(module, p, False, weights)


def find_dropout(model: nn.Module) -> DropoutSites:
    """Pass a text through a model in training mode, and return where values are dropped."""
    sites = DropoutSites()
    watched: list[tuple[nn.Module, str]] = []
    for name, module in model.named_modules():
        attention = str(getattr(vars(module).get("config"), "_attn_implementation", None))
        if isinstance(module, nn.Dropout) and module.p:
            vars(module)["forward"] = partial(sites.note, module, module.p, ".lora_dropout." in name)
            watched.append((module, "forward"))
        elif attention.startswith(DRAWN_AHEAD):
            vars(module)["note"] = partial(sites.note_attention, module)
            watched.append((module, "note"))
    try:
        _pass_a_text(model)
    finally:
        for module, name in watched:
            del vars(module)[name]
    return sites


def _pass_a_text(model: nn.Module) -> None:
    device = next(model.parameters()).device
    is_bfloat16 = any(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    dtype = torch.bfloat16 if is_bfloat16 else torch.float32
    text = torch.zeros((_TEXTS, _TOKENS), dtype=torch.long, device=device)
    if isinstance(end := getattr(getattr(model, "config", None), "eos_token_id", None), int):
        text[:, -1] = end  # where the heads of encoder-decoders read
    with (
        torch.no_grad(),
        computing_in(dtype, device),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        model(input_ids=text, attention_mask=torch.ones_like(text))
