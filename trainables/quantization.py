"""4-bit NF4 weights with double quantization (Dettmers et al. 2023, section 3, https://arxiv.org/abs/2305.14314).

They are made once and, like those of the base, shared by all trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import nn
from transformers import PreTrainedModel

from trainables.base_model import LINEAR_LAYERS, BaseModel, build_model, to_torch
from trainables.methods.low_rank_layers import weight_of

WEIGHT = "weight"
"""The key of the packed weight, beside those of bitsandbytes's ``QuantState.as_dict``."""


def with_quantized(base: BaseModel) -> BaseModel:
    """Return a base that also has the 4-bit weights of its linear layers, as plain arrays."""
    layers = {name: _quantized(layer) for name, layer in _linear_layers(build_model(base, seed=0)).items()}
    return replace(base, quantized={name: _to_arrays(weight) for name, weight in layers.items()})


def quantize(model: PreTrainedModel, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the base's linear layers by 4-bit NF4 ones with double quantization, in place.

    The weights equal those that ``BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True)`` gives; a Conv1D's weight is transposed first, as there.

    Arguments:
        model: to change.
        known: :attr:`BaseModel.quantized` of its base; layers not in it are quantized now.
    """
    for name, layer in _linear_layers(model).items():
        weight = _from_arrays(known[name]) if name in known else _quantized(layer)
        model.base_model.set_submodule(name, _layer(layer, weight))
    # PEFT checks this before it looks at the layers.
    object.__setattr__(model, "is_loaded_in_4bit", True)


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    named = model.base_model.named_modules()
    return {name: module for name, module in named if isinstance(module, LINEAR_LAYERS)}


def _quantized(layer: nn.Module) -> Params4bit:
    weight = weight_of(layer).detach().contiguous()
    new = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
    quantized: Params4bit = new.to(weight.device)  # type: ignore[misc]
    return quantized


def _to_arrays(weight: Params4bit) -> dict[str, Any]:
    parts = {WEIGHT: weight.data, **weight.quant_state.as_dict()}
    return {name: part.numpy() if isinstance(part, torch.Tensor) else part for name, part in parts.items()}


def _from_arrays(arrays: Mapping[str, Any]) -> Params4bit:
    parts = {name: to_torch(part) if isinstance(part, np.ndarray) else part for name, part in arrays.items()}
    return Params4bit.from_prequantized(parts.pop(WEIGHT), parts, device="cpu")


def _layer(layer: nn.Module, quantized: Params4bit) -> Linear4bit:
    weight = weight_of(layer)
    outputs, inputs = weight.shape
    with torch.device("meta"):
        new = Linear4bit(
            inputs,
            outputs,
            bias=layer.bias is not None,
            compute_dtype=weight.dtype,
            compress_statistics=True,
            quant_type="nf4",
        )
    new.weight = quantized
    # A weight that refers to its layer would keep both until garbage is collected.
    new.quant_state = quantized.quant_state
    new.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
    # In eval mode bitsandbytes repacks weights for a bfloat16 CPU kernel that has no gradient and never
    # unpacks them for training. Training and evaluation must use the same kernel.
    new.support_avx512bf16_for_cpu = False
    return new
