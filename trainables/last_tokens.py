"""The last block of a decoder, computed only for the tokens that the head reads.

A decoder's classification head reads one token of each text, its last. Of the other tokens only the keys and
values that this one attends to are needed: what the last block's MLP, two thirds of the block, and its
attention compute for them is thrown away. Logits and gradients are the same without it.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from trainables.attention import attend, attend_as
from trainables.dropout_sites import DRAWN_AHEAD

DRAWN_AHEAD_AT_READ = f"{DRAWN_AHEAD}_of_read_tokens"
"""The name under which transformers finds attention from the read tokens only."""

DECODERS = ("gemma", "gemma2", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Architectures, by ``model_type``, whose last block ends with an MLP added to its inputs."""

_READ: ContextVar[torch.Tensor | None] = ContextVar("read", default=None)
"""[texts]; index of the token of each that the head reads, during a model's forward pass."""


def narrow_last_block(model: PreTrainedModel) -> None:
    """Have the last block of a known architecture compute only the tokens that the head reads, in place."""
    if (mlp := last_mlp(model)) is None:
        return
    model.register_forward_pre_hook(_find, with_kwargs=True)
    model.register_forward_hook(_forget, always_call=True)
    mlp.register_forward_pre_hook(_narrow)
    if (attention := last_attention(model)) is not None and model.config._attn_implementation == "sdpa":
        attend_as(attention, DRAWN_AHEAD_AT_READ)


def has_last_token_head(model: PreTrainedModel) -> bool:
    """Return whether a model is a decoder whose head, ``score``, reads only :func:`read_tokens`.

    Code that comes with a model may do anything, under any name, so only that of transformers counts.
    """
    is_known = type(model).__module__.startswith("transformers.models.")
    return is_known and model.config.model_type in DECODERS


def last_mlp(model: PreTrainedModel) -> nn.Module | None:
    """Return the MLP whose outputs are read at :func:`read_tokens` only, if there is one."""
    if (block := last_block(model)) is None:
        return None
    mlp = block.mlp
    assert isinstance(mlp, nn.Module)
    return mlp


def last_attention(model: PreTrainedModel) -> nn.Module | None:
    """Return the last attention, if it can handle outputs of any number of tokens.

    Only GPT-2's can: others reshape them to the shape of their inputs.
    """
    if (block := last_block(model)) is None or model.config.model_type != "gpt2":
        return None
    attention = block.attn
    assert isinstance(attention, nn.Module)
    return attention


def last_block(model: PreTrainedModel) -> nn.Module | None:
    """Return the last block of a known decoder."""
    if not has_last_token_head(model):
        return None
    (blocks,) = (child for child in model.base_model.children() if isinstance(child, nn.ModuleList))
    return blocks[-1]


def read_tokens(input_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """Return the index of the token that a head reads, ``[texts]``: the last one that is not padding.

    Arguments:
        input_ids: [texts, longest].
        pad_token_id: the model's.
    """
    places = torch.arange(input_ids.shape[1], dtype=torch.int32, device=input_ids.device)
    return (places * (input_ids != pad_token_id)).argmax(dim=1)


def take_read(hidden: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Return the tokens that the head reads, ``[texts, 1, width]``, of ``[texts, longest, width]``."""
    return hidden[torch.arange(len(hidden), device=hidden.device), read][:, None]


def attend_from_read(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    read: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    """Compute attention for the read token of each text only: ``[texts, 1, heads, width]``.

    Arguments:
        module: the attention.
        query: [texts, heads, longest, width].
        key: the same.
        value: the same.
        attention_mask: [texts, 1, longest, longest], true where a token attends to another; with None,
            each attends to itself and all before it.
        read: [texts].
        options: of :func:`trainables.attention.attend`.
    """
    texts = torch.arange(len(read), device=read.device)
    if attention_mask is None:
        mask = (torch.arange(key.shape[2], device=read.device) <= read[:, None])[:, None, None]
    else:
        mask = attention_mask[texts, :, read][:, :, None]
    return attend(module, query[texts, :, read][:, :, None], key, value, mask, **options)[0]


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    read = _READ.get()
    if read is None:
        return attend(module, query, key, value, attention_mask, **options)
    return attend_from_read(module, query, key, value, attention_mask, read, **options), None


AttentionInterface.register(DRAWN_AHEAD_AT_READ, _attention)


def _find(
    model: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Note which tokens are read, and withhold the padding mask from the model.

    Padding comes after the text, and no token attends to later ones: without a mask PyTorch does less work.
    """
    assert isinstance(model, PreTrainedModel)
    input_ids = options["input_ids"] if "input_ids" in options else arguments[0]
    _READ.set(read_tokens(input_ids, model.config.pad_token_id))
    return arguments, options | {"attention_mask": torch.ones_like(input_ids)}


def _forget(model: nn.Module, arguments: tuple[Any, ...], output: object) -> None:
    _READ.set(None)


def _narrow(mlp: nn.Module, arguments: tuple[torch.Tensor]) -> torch.Tensor | None:
    """Reduce ``[texts, longest, width]`` to ``[texts, 1, width]``, which the block adds to all tokens.

    It does the same with the last attention's outputs: the results at other tokens are never read.
    """
    (hidden,) = arguments
    read = _READ.get()
    return None if read is None else take_read(hidden, read)
