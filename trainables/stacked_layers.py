"""Layers of several trials in one product: a frozen one with each trial's adapters, or each trial's own.

Inputs are ``[trials, tokens, inputs]``. Trained parameters and gradients are in :mod:`trainables.stacks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from trainables.methods.low_rank_layers import weight_of
from trainables.stacks import Stacks


@dataclass(frozen=True)
class StackedAdapters:
    """All trials' low-rank adapters of a layer."""

    stacks: Stacks
    name: str
    scaling: torch.Tensor  # [trials, 1, 1]; without DoRA, of inputs that dropout keeps but does not scale
    is_dora: torch.Tensor | None  # [trials, 1]; None if none is
    base_squared_norms: torch.Tensor | None  # [outputs], for DoRA

    def values(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        return self.stacks.values(f"{self.name}.{key}").to(dtype)

    def norms(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the norms of base plus update, ``[trials, outputs]``, as ``weight_norms`` does."""
        assert self.base_squared_norms is not None
        weight = weight.float()
        a, b = self.values("a", torch.float32) * self.scaling, self.values("b", torch.float32)
        inner = torch.baddbmm(weight @ a.mT, b, a @ a.mT, beta=2)
        return torch.sqrt(self.base_squared_norms + (b * inner).sum(dim=2))


def _computed_in(x: torch.Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class AdaptedLinear(torch.autograd.Function):
    """A frozen layer and all trials' adapters of it, for inputs ``[trials, tokens, inputs]``.

    LoRA's output is ``x W' + s (d A') B' + bias``, with d being x after dropout. DoRA's, with c its magnitude
    over its norm, is ``x W' + (c - 1) d W' + c s (d A') B' + bias`` (Liu et al. 2024, equation 5 and section
    4.3). Trained parameters are not inputs that autograd knows: ``anchor``, any tensor that requires a
    gradient, makes it call backward, and gets none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        anchor: torch.Tensor,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        layer: nn.Module,
        adapters: StackedAdapters,
    ) -> torch.Tensor:
        dtype = _computed_in(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(dtype)
            seen = x if dropped is None else dropped.to(dtype)
            weight, bias = weight_of(layer).to(dtype), layer.bias
            assert not isinstance(bias, nn.Module)
            bias = None if bias is None else bias.to(dtype)
            a, b = adapters.values("a", dtype), adapters.values("b", dtype)
            reduced = torch.bmm(seen, a.mT).mul_(adapters.scaling)
            ctx.layer, ctx.adapters, ctx.drops = layer, adapters, dropped is not None
            if adapters.is_dora is None:
                ctx.save_for_backward(seen, reduced)
                return linear(x, weight, bias).baddbmm_(reduced, b.mT)
            norms = adapters.norms(weight)
            magnitude = adapters.values("magnitude", torch.float32)
            change = torch.where(adapters.is_dora, magnitude / norms, 1.0).to(dtype)[:, None]
            unscaled = (seen @ weight.T).baddbmm_(reduced, b.mT)
            ctx.save_for_backward(seen, reduced, unscaled, norms, change)
            if dropped is None:
                return unscaled * change if bias is None else torch.addcmul(bias, unscaled, change)
            return linear(x - seen, weight, bias).addcmul_(unscaled, change)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        seen, reduced, *of_dora = ctx.saved_tensors
        adapters, stacks, name = ctx.adapters, ctx.adapters.stacks, ctx.adapters.name
        scaled, needs = gradient, ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        if of_dora:
            unscaled, norms, change = of_dora
            of_change = torch.where(adapters.is_dora, (gradient * unscaled).sum(dim=1) / norms, 0.0)
            one = torch.ones_like(of_change[:, :1, None])
            stacks.add_gradient(f"{name}.magnitude", of_change[:, :, None], one)
            scaled = gradient * change
        b, a = adapters.values("b", gradient.dtype), adapters.values("a", gradient.dtype)
        of_reduced = torch.bmm(scaled, b).mul_(adapters.scaling)
        stacks.add_gradient(f"{name}.b", scaled.mT, reduced)
        stacks.add_gradient(f"{name}.a", of_reduced.mT, seen)
        if not needs:
            return None, None, None, None, None
        weight = weight_of(ctx.layer).to(gradient.dtype)
        if not ctx.drops:
            return None, (scaled @ weight).baddbmm_(of_reduced, a), None, None, None
        of_x = gradient @ weight
        of_seen = torch.bmm(of_reduced, a)
        return None, of_x, of_seen.add_((scaled - gradient) @ weight) if of_dora else of_seen, None, None


class OwnLinear(torch.autograd.Function):
    """Each trial's own linear layer, for inputs ``[trials, tokens, inputs]``."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, x: torch.Tensor, stacks: Stacks, name: str) -> torch.Tensor:
        dtype = _computed_in(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(dtype)
            ctx.stacks, ctx.name = stacks, name
            ctx.save_for_backward(x)
            result = x @ stacks.values(f"{name}.weight").to(dtype).mT
            if f"{name}.bias" in stacks.shapes:
                result += stacks.values(f"{name}.bias").to(dtype)[:, None]
            return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        stacks, name = ctx.stacks, ctx.name
        stacks.add_gradient(f"{name}.weight", gradient.mT, x)
        if f"{name}.bias" in stacks.shapes:
            stacks.add_gradient(f"{name}.bias", gradient.mT, torch.ones_like(gradient[:, :, :1]))
        weight = stacks.values(f"{name}.weight").to(gradient.dtype)
        return None, gradient @ weight if ctx.needs_input_grad[1] else None, None, None
