"""Linear layers for evaluation, in fewer passes over memory than gradients need.

A low-rank layer's update is added to its base weight, so that one product remains. On a CPU, oneDNN adds
biases and computes GPT-2's GELU within the product (its documentation, 'Primitive Attributes: post-ops'), on
weights reordered once to its own layout. PyTorch's compiler uses it this way; here no compiler is needed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.functional import gelu, linear
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from trainables.methods.low_rank_layers import LowRankLayer, is_exact, merged_weight, weight_of

KEPT_BYTES = 128_000_000
"""The most bytes of weights that an evaluation keeps from one batch to the next."""

HAS_ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
"""Whether oneDNN is here, on the platform that this was measured on."""


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluate a model inside the block, without gradients. Its weights must not change meanwhile.

    Weights prepared by layers are kept from one batch to the next if together they are small enough. If not,
    only low-rank layers prepare theirs, for every batch, so that only one exists at a time.
    """
    fusible = [FusedLayer(module) for module in _fusible(model)]
    keeps = sum(layer.bytes for layer in fusible) <= KEPT_BYTES
    layers = {layer.module: layer for layer in fusible if keeps or layer.is_adapted}
    # Not in inference mode: what FSDP gathers in it cannot be trained with afterwards.
    with torch.no_grad(), ExitStack() as changed:
        for module, layer in layers.items():
            layer.keeps = keeps
            changed.enter_context(_computed_by(module, layer))
        for mlp in model.modules():
            if _is_gpt2_mlp(mlp) and mlp.c_fc in layers:
                layers[mlp.c_fc].has_gelu = True
                changed.enter_context(_computed_by(mlp.act, lambda outputs: outputs))
        yield


class FusedLayer:
    """The forward pass of a linear layer, with its adapter if it has one.

    Arguments:
        module: the layer, as PEFT wrapped it if it has an adapter.
    """

    def __init__(self, module: nn.Module) -> None:
        self.keeps = False  # the prepared weight, between batches
        self.has_gelu = False  # GPT-2's, applied to the outputs
        self.module = module
        self.is_adapted = isinstance(module, LowRankLayer)
        self._layer: Any = module
        self._make_weight = partial(weight_of, module)
        if isinstance(module, LowRankLayer):
            self._layer, self._make_weight = module.get_base_layer(), partial(merged_weight, module)
        self._forward = module.forward
        self._weight: torch.Tensor | None = None

    @property
    def bytes(self) -> int:
        """Bytes of its weight."""
        of = self._layer
        return int(4 * (of.nf * of.nx if isinstance(of, Conv1D) else of.out_features * of.in_features))

    def __call__(self, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        """Return outputs ``[..., outputs]`` for inputs ``[..., inputs]``."""
        # Preparing a weight for one batch pays if that has more tokens than the layer has inputs. A sum in
        # bfloat16 would lose the update.
        pays = self.keeps or x.numel() > x.shape[-1] ** 2
        if arguments or options or not pays or not is_exact(x):
            return self._activated(self._forward(x, *arguments, **options))
        with_onednn = HAS_ONEDNN and x.device.type == "cpu"
        weight = self._weight
        if weight is None:
            weight = self._make_weight()
            if self.keeps:
                weight = torch.ops.mkldnn._reorder_linear_weight(weight) if with_onednn else weight
                self._weight = weight
        if not with_onednn:
            return self._activated(linear(x, weight, self._layer.bias))
        then: Any = ("gelu", [], "tanh") if self.has_gelu else ("none", [], "")
        outputs: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, self._layer.bias, *then)
        return outputs

    def _activated(self, outputs: torch.Tensor) -> torch.Tensor:
        return gelu(outputs, approximate="tanh") if self.has_gelu else outputs


def _fusible(model: nn.Module) -> list[nn.Module]:
    """Find the layers with adapters and, where oneDNN is of use, those without."""
    adapted: list[nn.Module] = [module for module in model.modules() if isinstance(module, LowRankLayer)]
    inside = {part for module in adapted for part in module.modules()}
    plain = (one for one in model.modules() if one not in inside and _is_plain(one)) if HAS_ONEDNN else ()
    return [*adapted, *plain]


def _is_plain(module: nn.Module) -> bool:
    """Return whether a layer is on the CPU and only multiplies; derived classes may do more."""
    is_linear = getattr(module.forward, "__func__", None) in (nn.Linear.forward, Conv1D.forward)
    return is_linear and next(module.parameters()).device.type == "cpu"


def _is_gpt2_mlp(module: nn.Module) -> TypeGuard[GPT2MLP]:
    """Return whether a module applies the tanh GELU to the outputs of ``c_fc``, by ``act``."""
    if not isinstance(module, GPT2MLP) or type(module).forward is not GPT2MLP.forward:
        return False
    return isinstance(module.act, nn.GELU) and module.act.approximate == "tanh"


@contextmanager
def _computed_by(module: nn.Module, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Replace a module's forward pass inside the block."""
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
