"""Attention with dropout masks drawn ahead (:mod:`trainables.dropout`), as a single autograd function.

It is Vaswani et al. 2017, section 3.2.1, in few passes: a small model's step takes as long as launching its
kernels, and attention composed of autograd's own operations launches twice as many.
"""

from __future__ import annotations

import inspect
from copy import copy
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from trainables.dropout import keep
from trainables.dropout_sites import DRAWN_AHEAD


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention: by PyTorch's own function, unless the module has dropout masks drawn ahead.

    Arguments and result are those of transformers' ``sdpa_attention_forward``; a mask is true where a token
    attends to another.
    """
    next_mask, note = vars(module).get("next_mask"), vars(module).get("note")
    can_drop = dropout and options.get("position_bias") is None
    if can_drop and note:
        note(dropout, query.new_empty((*query.shape[:3], key.shape[2])))
    if not can_drop or next_mask is None:
        common: dict[str, Any] = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **common, **options
        )
        return output
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unseen = None
    if attention_mask is not None:
        unseen = ~attention_mask
    elif causal and query.shape[2] > 1:
        # What is made while a graph is recorded is part of the graph.
        later = _later.__wrapped__ if query.is_cuda and torch.cuda.is_current_stream_capturing() else _later
        unseen = later(query.shape[2], key.shape[2], query.device)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Rotary embeddings, or a 4-bit layer under autocast, may have made some of them float32.
    device = value.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return _Attention.apply(query, key, value, unseen, *next_mask(), scaling), None


@lru_cache(maxsize=32)
def _later(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Return where a key comes after its query, ``[queries, keys]``."""
    with torch.inference_mode(False):
        return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(1)


class _Attention(torch.autograd.Function):
    """``drop(softmax(s Q K')) V`` for queries, keys and values ``[texts, heads, tokens, width]``.

    The result is ``[texts, tokens, heads, width]``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        unseen: torch.Tensor | None,
        mask: torch.Tensor,
        factor: float,
        scaling: float,
    ) -> torch.Tensor:
        texts, heads, queries, _ = query.shape
        queried, keys, values = _rows(query, key, value)
        weights = _product(queried, keys.transpose(1, 2), scaling)
        if unseen is not None:
            least = torch.finfo(weights.dtype).min  # finite, as padding may attend to nothing at all
            weights.view(texts, heads, *weights.shape[1:]).masked_fill_(unseen, least)
        weights = weights.softmax(dim=-1, dtype=torch.float32)
        kept = keep(weights, mask, factor).to(value.dtype)
        ctx.save_for_backward(queried, keys, values, weights, kept)
        ctx.mask, ctx.factor, ctx.scaling, ctx.texts = mask, factor, scaling, texts
        return (kept @ values).view(texts, heads, queries, -1).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        queried, keys, values, weights, kept = ctx.saved_tensors
        of_result = gradient.transpose(1, 2).flatten(0, 1)
        of_kept = (of_result @ values.transpose(1, 2)).to(weights.dtype)
        of_weights = keep(of_kept, ctx.mask, ctx.factor)
        of_products = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype).to(values.dtype)
        of_keys = _product(of_products.transpose(1, 2), queried, ctx.scaling)
        of_values = kept.transpose(1, 2) @ of_result
        of_queried = _product(of_products, keys, ctx.scaling)
        return *_tokens(ctx.texts, of_queried, of_keys, of_values), None, None, None, None


def _rows(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Reshape ``[texts, heads, tokens, width]`` to ``[texts x heads, tokens, width]``, at once if alike."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors).flatten(1, 2).unbind()
    return tuple(tensor.flatten(0, 1) for tensor in tensors)


def _tokens(texts: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Undo :func:`_rows`, token by token in memory, as layers that make all three at once expect."""
    by_token = [tensor.unflatten(0, (texts, -1)).transpose(1, 2) for tensor in tensors]
    if len({tensor.shape for tensor in tensors}) == 1:
        by_token = list(torch.stack(by_token, dim=2).unbind(2))
    return tuple(tensor.transpose(1, 2) for tensor in by_token)


def _product(left: torch.Tensor, right: torch.Tensor, factor: float) -> torch.Tensor:
    """Return ``factor * left @ right`` of many matrices in one kernel."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=factor)


def attend_as(attention: nn.Module, name: str) -> None:
    """Have one of a model's attentions use the function that transformers knows by a name."""
    config = copy(attention.config)
    assert isinstance(config, PreTrainedConfig)
    config._attn_implementation = name
    vars(attention)["config"] = config


def let_draw_ahead(model: PreTrainedModel) -> None:
    """Have a model's attentions use :func:`attend`, in place."""
    by_name = {kind for kind in {type(module) for module in model.modules()} if _asks_by_name(kind)}
    for module in model.modules():
        is_sdpa = getattr(vars(module).get("config"), "_attn_implementation", None) == "sdpa"
        if is_sdpa and type(module) in by_name:
            attend_as(module, DRAWN_AHEAD)


def _asks_by_name(kind: type[nn.Module]) -> bool:
    """Return whether modules look attention up by its name, and use the name for nothing else.

    Falcon's compute it themselves, and differently where the name is not ``sdpa``.
    """
    if not kind.__name__.endswith("Attention"):
        return False
    try:
        source = inspect.getsource(kind.forward)
    except (OSError, TypeError):  # a class made at run time
        return False
    return "ALL_ATTENTION_FUNCTIONS" in source and '"sdpa"' not in source


AttentionInterface.register(DRAWN_AHEAD, attend)
