"""The trained parameters of several trials, stacked: one tensor holds a parameter of all trials.

All trials' products with their adapters are then one product, and their gradients are clipped in one pass.
Ranks may differ: a smaller adapter is padded with zeros, whose gradients are zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import nn
from torch.optim.adamw import adamw

from trainables.training import Trained

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each stack's parameters, by name."""


class Stacks:
    """Parameters, gradients and AdamW's moments of trials, each trial's in a row of its own.

    A trial's own tensors are out of date while it has a row, until :meth:`take_out`.

    Arguments:
        shapes: the largest that any trial has.
        rows: how many trials there is room for.
        device: of all tensors.
    """

    def __init__(self, shapes: Shapes, rows: int, device: torch.device) -> None:
        self.shapes = shapes
        self.rows = rows
        starts = [0]
        for shape in shapes.values():
            starts.append(starts[-1] + prod(shape))
        self._starts = dict(zip(shapes, starts, strict=False))
        self._values, self._gradients, self._first, self._second = (
            torch.zeros(rows, starts[-1], device=device) for _ in range(4)
        )
        self._steps = torch.zeros(rows, device=device)
        self._written: set[str] = set()  # names whose gradients are the current step's
        self.trials: list[Trained] = []  # by row
        self._own: list[Mapping[str, nn.Parameter]] = []  # by row, each trial's own parameters

    def fits(self, shapes: Shapes) -> bool:
        """Return whether a trial's parameters fit into a row."""
        return shapes.keys() <= self.shapes.keys() and all(
            size <= most
            for name, shape in shapes.items()
            for size, most in zip(shape, self.shapes[name], strict=True)
        )

    def values(self, name: str) -> torch.Tensor:
        """Return a stack of parameters, ``[trials, ...]``."""
        return self._stack(self._values, name)

    def begin_gradients(self) -> None:
        """Have the next gradients replace those of the last step."""
        self._written.clear()

    def add_gradient(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add a gradient, ``left @ right``, to those that :meth:`step` will use.

        Arguments:
            name: whose gradient it is.
            left: [trials, rows, any].
            right: [trials, any, columns], with one column where parameters have one dimension.
        """
        stack, is_first = self._stack(self._gradients, name), name not in self._written
        self._written.add(name)
        stack = stack.view(*stack.shape, *(1 for _ in range(3 - stack.ndim)))
        if left.dtype == stack.dtype:
            stack.baddbmm_(left, right, beta=0 if is_first else 1)
        elif is_first:
            stack.copy_(left @ right)
        else:
            stack.add_(left @ right)

    def take_in(self, trained: Trained, own: Mapping[str, nn.Parameter]) -> None:
        """Give a trial the next row."""
        row = len(self.trials)
        known = trained.optimizer.state
        for of_all in (self._values, self._gradients, self._first, self._second):
            of_all[row].zero_()
        self._steps[row] = next((known[one]["step"] for one in own.values() if one in known), 0.0)
        with torch.no_grad():
            self._copy(self._values, row, {name: one.detach() for name, one in own.items()})
            for key, moments in (("exp_avg", self._first), ("exp_avg_sq", self._second)):
                self._copy(moments, row, {n: known[one][key] for n, one in own.items() if one in known})
        self.trials.append(trained)
        self._own.append(own)

    def take_out(self, trained: Trained) -> None:
        """Copy a trial's row back into its own tensors; the last trial takes the row."""
        row = next(row for row, one in enumerate(self.trials) if one is trained)
        own, optimizer = self._own[row], trained.optimizer
        with torch.no_grad():
            self._copy_back(self._values, row, {name: one.detach() for name, one in own.items()})
            if self._steps[row].item():
                for one in own.values():
                    if one not in optimizer.state:
                        optimizer.state[one] = {
                            "step": torch.zeros((), device=one.device),
                            "exp_avg": torch.zeros_like(one),
                            "exp_avg_sq": torch.zeros_like(one),
                        }
                    optimizer.state[one]["step"].copy_(self._steps[row])
                for key, moments in (("exp_avg", self._first), ("exp_avg_sq", self._second)):
                    self._copy_back(moments, row, {n: optimizer.state[one][key] for n, one in own.items()})
        last = len(self.trials) - 1
        for of_all in (self._values, self._gradients, self._first, self._second, self._steps):
            of_all[row] = of_all[last]
        self.trials[row], self._own[row] = self.trials[last], self._own[last]
        self.trials.pop()
        self._own.pop()

    def step(self, max_gradient_norms: Sequence[float]) -> None:
        """Take each trial's optimizer step, with its gradients clipped to its own norm.

        It computes what ``clip_grad_norm_`` and PyTorch's AdamW do.
        """
        count = len(self.trials)
        gradients = self._gradients[:count]
        most = torch.tensor(max_gradient_norms).to(gradients.device, non_blocking=True)
        norms = torch.linalg.vector_norm(gradients, dim=1)
        gradients.mul_((most / (norms + 1e-6)).clamp_(max=1.0)[:, None])
        for row, trained in enumerate(self.trials):
            (group,) = trained.optimizer.param_groups
            beta1, beta2 = group["betas"]
            adamw(
                [self._values[row]],
                [gradients[row]],
                [self._first[row]],
                [self._second[row]],
                [],
                [self._steps[row]],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            # The schedule warns if it steps before the optimizer.
            trained.optimizer._opt_called = True  # type: ignore[attr-defined]
            trained.schedule.step()

    def _stack(self, of_all: torch.Tensor, name: str) -> torch.Tensor:
        start, shape = self._starts[name], self.shapes[name]
        return of_all[: len(self.trials), start : start + prod(shape)].unflatten(1, shape)

    def _part(self, of_all: torch.Tensor, row: int, name: str, shape: torch.Size) -> torch.Tensor:
        start, whole = self._starts[name], self.shapes[name]
        filled = of_all[row, start : start + prod(whole)].view(whole)
        return filled[tuple(slice(size) for size in shape)]

    def _copy(self, of_all: torch.Tensor, row: int, own: Mapping[str, torch.Tensor]) -> None:
        if own:
            parts = [self._part(of_all, row, name, tensor.shape) for name, tensor in own.items()]
            torch._foreach_copy_(parts, list(own.values()))

    def _copy_back(self, of_all: torch.Tensor, row: int, own: Mapping[str, torch.Tensor]) -> None:
        parts = [self._part(of_all, row, name, tensor.shape) for name, tensor in own.items()]
        torch._foreach_copy_(list(own.values()), parts)
