"""Dropout (Srivastava et al. 2014) with all masks of a training step drawn at once.

PyTorch draws each mask where it is needed. Drawn ahead, masks depend only on the trial's random stream and
the shape of its batch: trials that share a pass through their base get the masks that each gets alone. A GPU
launches one kernel instead of one per layer, and a CPU draws twice as fast. A mask takes a byte per value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from trainables.dropout_sites import MaskKind, find_dropout

SHORT_TEXT = 128
"""Tokens of the longest text whose attention weights, one for each pair of tokens, need little memory."""

MOST_AT_ONCE = 2**31 - 2
"""The reach of what PyTorch draws on a GPU as a whole; what lies further apart it draws in parts."""


class Masks:
    """Where a model has dropout, and the masks of its current step: true where a value is kept.

    If they are of use (``is_of_use``), the model takes its masks from here from now on while it trains.

    Arguments:
        model: in training mode, on its device.
        longest: tokens of the longest training text. The model stays as it is where texts are long and
            attention has dropout, as PyTorch's kernels need not keep that mask; where dropped values are not
            ``[texts, ...]``; and where one module drops several times and activations are recomputed.
    """

    def __init__(self, model: nn.Module, longest: int) -> None:
        sites = find_dropout(model)
        self.counts = sites.counts
        self._sites = sites.of_module
        self._calls: Counter[nn.Module] = Counter()  # in the current step
        self._drawn: Mapping[MaskKind, torch.Tensor] = {}
        self._of_part: Mapping[MaskKind, torch.Tensor] | None = None  # where a model sees a batch in parts
        # Activations are recomputed in another order, in which calls of one module cannot be told apart.
        again = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        repeats = any(len(calls) > 1 for calls in self._sites.values())
        is_long = bool(sites.attention) and longest > SHORT_TEXT
        self.is_of_use = sites.are_known and not is_long and not (again and repeats)
        if self.is_of_use:
            for module in self._sites:
                if module in sites.attention:
                    vars(module)["next_mask"] = partial(self.next_mask, module)
                else:
                    vars(module)["forward"] = partial(self.drop, module)

    def next_site(self, module: nn.Module) -> tuple[MaskKind, int]:
        """Return the kind of the mask that a module needs now, and its index among these."""
        sites = self._sites[module]
        call = self._calls[module] % len(sites)  # once more, where activations are recomputed
        self._calls[module] += 1
        return sites[call]

    def draw(self, texts: int, longest: int, device: torch.device) -> None:
        """Draw the masks of a forward pass from torch's current random state, or take those of the part."""
        self.put({})  # frees the last ones first
        self.put(self._draw(texts, longest, device) if self._of_part is None else self._of_part)

    @contextmanager
    def of_parts(self, texts: int, longest: int, device: torch.device) -> Iterator[Callable[[slice], None]]:
        """Draw the masks of a batch that the model sees in parts; yield a function that selects a part."""
        self.put({})
        whole = self._draw(texts, longest, device) if self.is_of_use else {}

        def turn_to(rows: slice) -> None:
            self._of_part = {kind: masks[:, :, rows] for kind, masks in whole.items()}

        try:
            yield turn_to
        finally:
            self._of_part = None

    def _draw(self, texts: int, longest: int, device: torch.device) -> dict[MaskKind, torch.Tensor]:
        drawn = {}
        for kind, count in self.counts.items():
            drawn[kind] = torch.empty(
                (count, 1, texts, *kind.sizes(longest)), dtype=torch.bool, device=device
            )
            draw(drawn[kind], kind.p)
        return drawn

    def put(self, drawn: Mapping[MaskKind, torch.Tensor]) -> None:
        """Set the masks of the next step, ``[count, trials, texts, ...]``."""
        self._drawn = drawn
        self._calls.clear()

    def next_mask(self, module: nn.Module) -> tuple[torch.Tensor, float]:
        """Return the mask that a module needs now, and the factor of values that it keeps."""
        kind, index = self.next_site(module)
        return self._drawn[kind][index], 1 / (1 - kind.p)

    def drop(self, module: nn.Module, values: torch.Tensor) -> torch.Tensor:
        """Apply the next mask to a module's values, ``[trials x texts, ...]``, if it trains."""
        if not module.training:
            return values
        return drop(values, *self.next_mask(module))


class _Drop(torch.autograd.Function):
    """Keeps the mask for the backward pass; autograd by itself would save a tensor more."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, mask: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.mask, ctx.factor = mask, factor
        return keep(values, mask, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return keep(gradient, ctx.mask, ctx.factor), None, None


def drop(values: torch.Tensor, mask: torch.Tensor, factor: float) -> torch.Tensor:
    """Do what :func:`keep` does, with a gradient."""
    result: torch.Tensor = _Drop.apply(values, mask, factor)
    return result


def keep(values: torch.Tensor, mask: torch.Tensor, factor: float) -> torch.Tensor:
    """Return ``factor`` times the values, or their gradient, where a mask is true, else 0.

    Arguments:
        values: of the mask's shape, except for dimensions of 1.
        mask: of booleans.
        factor: scales values that are kept.
    """
    mask = mask.reshape(values.shape)
    if values.is_cuda:  # in one kernel: dropout's own backward pass computes the same
        result: torch.Tensor = torch.ops.aten.native_dropout_backward(values, mask, factor)
        return result
    # Two passes, the second of which reads from the cache: no slower than with masks of numbers.
    result = mask.to(values.dtype)
    return torch.addcmul(values.new_zeros(()), result, values, value=factor, out=result)


def draw(mask: torch.Tensor, p: float, generator: torch.Generator | None = None) -> None:
    """Fill a mask that drops a share ``p`` of values, from a generator or torch's current random state.

    What is drawn depends on the mask's shape, and not on where it lies in memory.
    """
    if not mask.is_cuda:  # faster there than drawing booleans
        torch.lt(torch.rand(mask.shape, generator=generator), 1 - p, out=mask)
    elif _reach(mask) <= MOST_AT_ONCE:
        mask.bernoulli_(1 - p, generator=generator)
    else:
        apart = torch.empty(mask.shape, dtype=mask.dtype, device=mask.device)
        mask.copy_(apart.bernoulli_(1 - p, generator=generator))


def _reach(mask: torch.Tensor) -> int:
    """Return how many bytes lie between the first value of a mask and its last."""
    return sum((size - 1) * stride for size, stride in zip(mask.shape, mask.stride(), strict=True))


def draw_ahead(model: nn.Module, longest: int) -> Masks:
    """Have a model draw its masks when a training step's forward pass begins, in place, if of use.

    Arguments:
        model: in training mode, on its device.
        longest: tokens of the longest training text.
    """
    masks = Masks(model, longest)

    def begin_step(model: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not model.training:
            masks.put({})  # an evaluation needs none of the last step's
            return
        input_ids: torch.Tensor = options["input_ids"]
        texts, longest = input_ids.shape
        masks.draw(texts, longest, input_ids.device)

    if masks.counts and masks.is_of_use:
        model.register_forward_pre_hook(begin_step, with_kwargs=True)
    return masks
