"""PEFT's low-rank layers with the same results, up to rounding, in fewer passes over memory.

Small models spend more time between matrix products than on them. PEFT's own forward scales and adds an
adapter's output in separate passes, and for DoRA it builds the whole update to compute its norms.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit as BaseLinear4bit
from peft.tuners.lora.bnb import Linear4bit
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

LowRankLayer = Linear | Linear4bit


class FastLinear(Linear):
    """A low-rank layer on a Linear or Conv1D."""

    def forward(self, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        result = low_rank(self, x, options)
        return super().forward(x, *arguments, **options) if result is None else result


class FastLinear4bit(Linear4bit):
    """A low-rank layer on a 4-bit layer."""

    def forward(self, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        result = low_rank(self, x, options)
        return super().forward(x, *arguments, **options) if result is None else result


def speed_up(model: nn.Module) -> None:
    """Give the low-rank layers of a model, each with one adapter, a faster forward pass, in place."""
    for module in list(model.modules()):
        if type(module) is Linear4bit:
            module.__class__ = FastLinear4bit
        elif type(module) is Linear:
            module.__class__ = FastLinear
            if module.lora_variant:
                squares = _weight(module).detach().float().square().sum(dim=1)
                module.register_buffer("base_squared_norms", squares, persistent=False)


def low_rank(layer: LowRankLayer, x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor | None:
    """Return outputs ``[..., outputs]`` for inputs ``[..., inputs]``, or None if PEFT must compute them."""
    (name,) = layer.active_adapters
    dropout, is_dora = layer.lora_dropout[name], name in layer.lora_variant
    # With dropout, DoRA needs a second output of the base, for the inputs after dropout.
    drops = layer.training and isinstance(dropout, nn.Dropout)
    if layer.disable_adapters or layer.merged or options or (is_dora and drops):
        return None
    a, b, scaling, magnitude = _adapter(layer)
    if not drops and is_exact(x):  # base and adapter see the same inputs
        result = _BaseAndAdapter.apply(x.flatten(0, -2), a, b, magnitude, scaling, layer)
        return result.view(*x.shape[:-1], -1)
    base, reduced = layer.base_layer(x), nn.functional.linear(dropout(x), a)
    result = torch.addmm(base.flatten(0, -2), reduced.flatten(0, -2), b.T, alpha=scaling)
    if magnitude is not None:
        # Liu et al. 2024, equation 5, with a norm that gradients treat as constant (section 4.3). The bias is
        # not scaled: scale * (result - bias) + bias.
        scale, bias = magnitude / weight_norms(layer, a, b, scaling), layer.base_layer.bias
        if isinstance(bias, torch.Tensor):
            result = torch.addcmul(bias - scale * bias, result, scale)
        else:
            result = result * scale
    return result.to(base.dtype).view(*x.shape[:-1], -1)


def is_exact(x: torch.Tensor) -> bool:
    """Return whether inputs are multiplied in float32."""
    return x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)


class _BaseAndAdapter(torch.autograd.Function):
    """A frozen layer and its adapter, ``x W' + s (x A') B' + bias``, for inputs ``[tokens, inputs]``.

    DoRA scales all but the bias by magnitude over norm. Outputs and the gradient of the inputs are added to
    and scaled in place, where autograd would copy and keep them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        magnitude: torch.Tensor | None,
        scaling: float,
        layer: LowRankLayer,
    ) -> torch.Tensor:
        weight, bias, reduced = _weight(layer), layer.base_layer.bias, x @ a.T
        assert not isinstance(bias, nn.Module)
        ctx.scaling, ctx.layer = scaling, layer  # its 4-bit weight is dequantized again, not kept
        if magnitude is None:
            ctx.save_for_backward(x, a, b, reduced)
            return nn.functional.linear(x, weight, bias).addmm_(reduced, b.T, alpha=scaling)
        scale = magnitude / weight_norms(layer, a, b, scaling)
        outputs = (x @ weight.T).addmm_(reduced, b.T, alpha=scaling)
        outputs = outputs.mul_(scale) if bias is None else torch.addcmul(bias, outputs, scale, out=outputs)
        ctx.save_for_backward(x, a, b, reduced, magnitude, scale, outputs)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a, b, reduced, *of_dora = ctx.saved_tensors
        of_magnitude = None
        if of_dora:
            magnitude, scale, outputs = of_dora
            of_magnitude = (gradient * outputs).sum(dim=0)
            if (bias := ctx.layer.base_layer.bias) is not None:
                of_magnitude -= bias * gradient.sum(dim=0)
            of_magnitude /= magnitude
            gradient = gradient * scale
        of_reduced, of_b = _product(gradient, b, ctx.scaling), _product(gradient.T, reduced, ctx.scaling)
        of_x = (gradient @ _weight(ctx.layer)).addmm_(of_reduced, a) if ctx.needs_input_grad[0] else None
        return of_x, of_reduced.T @ x, of_b, of_magnitude, None, None


def _product(left: torch.Tensor, right: torch.Tensor, factor: float) -> torch.Tensor:
    """Return ``factor * left @ right`` in one pass, on a GPU in one kernel."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=factor)


def _adapter(layer: LowRankLayer) -> tuple[torch.Tensor, torch.Tensor, float, torch.Tensor | None]:
    """Return A, B, the scaling of their product, and DoRA's magnitude."""
    (name,) = layer.active_adapters
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    magnitude = layer.lora_magnitude_vector[name].weight if name in layer.lora_variant else None
    assert isinstance(a, torch.Tensor)
    assert isinstance(b, torch.Tensor)
    assert not isinstance(magnitude, nn.Module)
    return a, b, layer.scaling[name], magnitude


def merged_weight(layer: LowRankLayer) -> torch.Tensor:
    """Return the weight of base and adapter together, ``[outputs, inputs]``."""
    a, b, scaling, magnitude = _adapter(layer)
    weight = torch.addmm(_weight(layer), b, a, alpha=scaling)
    return weight if magnitude is None else weight.mul_((magnitude / weight.norm(dim=1))[:, None])


@torch.no_grad()
def weight_norms(layer: LowRankLayer, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return the norm of each output's weights, ``[outputs]``, without building the update.

    With rows w of the base's weight and b of B, |w + s b A|^2 = |w|^2 + s b . (2 A w + s A A' b).
    """
    inner = torch.addmm(_weight(layer) @ a.T, b, a @ a.T, beta=2, alpha=scaling)
    assert isinstance(layer.base_squared_norms, torch.Tensor)
    return torch.sqrt(layer.base_squared_norms + scaling * (b * inner).sum(dim=1))


def _weight(layer: LowRankLayer) -> torch.Tensor:
    """Return the base's weight, ``[outputs, inputs]``, dequantized."""
    return weight_of(layer.base_layer)


def weight_of(layer: nn.Module) -> torch.Tensor:
    """Return the weight of a linear layer, ``[outputs, inputs]``, dequantized."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(layer, BaseLinear4bit):
        state: Any = layer.quant_state
        return dequantize_4bit(weight, state)
    return weight.T if isinstance(layer, Conv1D) else weight
