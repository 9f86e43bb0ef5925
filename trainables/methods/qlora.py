"""QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314): LoRA on a base in 4-bit NF4."""

from __future__ import annotations

import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainables.base_model import LINEAR_LAYERS
from trainables.methods.lora import LoraSettings, wrap_low_rank
from trainables.methods.method import Method


def wrap(model: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """Quantize the base's linear layers and attach LoRA adapters to them."""
    quantize(model)
    return wrap_low_rank(model, settings, use_dora=False)


def quantize(model: PreTrainedModel) -> None:
    """Replace the base's linear layers by 4-bit NF4 ones with double quantization, in place.

    The weights become those that ``BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True)`` gives; a Conv1D's weight is transposed first, as there.
    """
    base = model.base_model
    linear = {name: module for name, module in base.named_modules() if isinstance(module, LINEAR_LAYERS)}
    for name, module in linear.items():
        base.set_submodule(name, _quantized(module))
    # PEFT asks for it before it looks at the layers.
    object.__setattr__(model, "is_loaded_in_4bit", True)


def _quantized(module: nn.Module) -> Linear4bit:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(module, Conv1D):
        weight = weight.T
    outputs, inputs = weight.shape
    with torch.device("meta"):
        layer = Linear4bit(
            inputs,
            outputs,
            bias=module.bias is not None,
            compute_dtype=weight.dtype,
            compress_statistics=True,
            quant_type="nf4",
        )
    quantized = Params4bit(
        weight.detach().contiguous(),
        requires_grad=False,
        compress_statistics=True,
        quant_type="nf4",
    )
    layer.weight = quantized.to(weight.device)  # type: ignore[misc]  # quantizes
    # A weight that knew its layer would stay, with it, until garbage is collected.
    layer.quant_state = quantized.quant_state
    layer.register_parameter("bias", module.bias)  # type: ignore[arg-type]
    # In eval mode bitsandbytes repacks weights for a bfloat16 CPU kernel that has no gradient and never
    # unpacks them for training. Training and evaluation must use one and the same kernel.
    layer.support_avx512bf16_for_cpu = False
    return layer


QLORA = Method(
    kind="qlora",
    settings=LoraSettings,
    wrap=wrap,
    checkpoint_kind="adapter",
    published_default={"rank": 64, "alpha": 16, "learning_rate": 2e-4},
    source="Dettmers et al. 2023, appendix B.2: models up to 13B",
    quantized=True,
)
