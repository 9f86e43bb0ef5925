"""The base model: shared as arrays, rebuilt per trial."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.activations import NewGELUActivation
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from trainables.attention import let_draw_ahead
from trainables.errors import InputError
from trainables.last_tokens import last_block, narrow_last_block
from trainables.settings import ModelSettings

LINEAR_LAYERS = (nn.Linear, Conv1D)
"""Layers that adapters attach to and that quantization replaces; GPT-2's Conv1D is a transposed Linear."""


@dataclass(frozen=True)
class BaseModel:
    """Base weights as plain arrays, so that the object store shares them without a copy."""

    settings: ModelSettings
    path: str  # what from_pretrained takes: hub id or absolute directory (the cache's for 'embedded')
    config: dict[str, Any]  # AutoConfig's dict, with num_labels, id2label, label2id and pad_token_id set
    weights: Mapping[str, NDArray[Any]]  # by parameter name, without the head; bfloat16 as uint16
    fingerprint: str  # sha256 of names, shapes and bytes of the weights
    # 4-bit weights by linear layer, see trainables.quantization; those that are missing are made when needed
    quantized: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of frozen weights and computation."""
        return dtype_of(self.settings)


def build_model(base: BaseModel, seed: int) -> PreTrainedModel:
    """Rebuild the model around views of the shared weights, with a head initialized from ``seed``.

    The views may be read-only; call :func:`own_trainable_parameters` before training.
    """
    config = _make_config(base)
    config.use_cache = False  # a decoder would copy keys and values for tokens that never come
    with no_init_weights():
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            config,
            dtype=base.dtype,
            trust_remote_code=base.settings.trust_remote_code,
        )
    model.load_state_dict({name: to_torch(w) for name, w in base.weights.items()}, strict=False, assign=True)
    model.tie_weights()  # one weight in several places, such as T5's embeddings, was loaded as several
    with torch.random.fork_rng(devices=[]):  # the head is initialized on the CPU
        torch.manual_seed(seed)
        for module in head_modules(model).values():
            for layer in module.modules():
                model._init_weights(layer)
    model.config.name_or_path = base.path
    model.name_or_path = base.path
    _fuse_activations(model)
    narrow_last_block(model)
    let_draw_ahead(model)
    return model


def _fuse_activations(model: nn.Module) -> None:
    """Compute GPT-2's GELU in one kernel; transformers composes it of eight."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep only each block's inputs, and recompute its activations when gradients need them, in place.

    Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174.

    Raises:
        ValueError: if the architecture does not allow it.
    """
    if not any(parameter.requires_grad for parameter in model.base_model.parameters()):
        return  # a frozen base keeps nothing
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if (last := last_block(model)) is not None:
        last.gradient_checkpointing = False  # type: ignore[assignment]  # its activations are needed at once


def _make_config(base: BaseModel) -> PreTrainedConfig:
    if not base.settings.trust_remote_code:
        return AutoConfig.for_model(**base.config)
    # A class that comes with the model is found only through its path.
    known: PreTrainedConfig = AutoConfig.from_pretrained(
        base.path, revision=base.settings.revision, trust_remote_code=True
    )
    known.update({key: value for key, value in base.config.items() if key not in ("auto_map", "model_type")})
    return known


def head_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the top-level modules beside the base that have parameters: the classification head."""
    return {
        name: child
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    }


def linear_layer_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the base's linear layers, such as ``c_attn`` or ``q_proj``, without the head's."""
    names = (
        name.rpartition(".")[2]
        for name, module in model.base_model.named_modules()
        if isinstance(module, LINEAR_LAYERS)
    )
    return tuple(dict.fromkeys(names))


def check_target_modules(model: PreTrainedModel, names: Sequence[str], key: str) -> None:
    """Check that adapters can attach to each of ``names``.

    Raises:
        InputError: naming the unknown ones and the known ones.
    """
    known = linear_layer_names(model)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(key, f"no layer is named {', '.join(unknown)}; this model has {', '.join(known)}")


def own_trainable_parameters(model: nn.Module) -> None:
    """Give each trainable parameter memory of its own, in place of a shared view, and 32 bits.

    AdamW's small updates are lost in bfloat16's 8 bits of precision (Micikevicius et al. 2018, section 3.1).
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32, copy=True)


def dtype_of(settings: ModelSettings) -> torch.dtype:
    """Return the dtype of frozen weights and computation."""
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """Return a view of an array, which may be read-only; uint16 is bfloat16."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
