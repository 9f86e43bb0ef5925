"""One forward pass through a frozen base for the batches of several trials, each with its own adapters.

Batches are concatenated, ``[trials x texts, tokens]``, each padded to the most texts and the longest text.
Trained parameters are in stacks (:mod:`trainables.stacks`), so that an adapter or a head is one product for
all trials, and each trial has the dropout masks it has alone (:mod:`trainables.dropout`). So every trial gets
what it would get alone, up to rounding. On a GPU, passes are CUDA graphs (:mod:`trainables.graphs`): what
changes when trials come and go is in tensors that stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trainables.base_model import BaseModel, build_model, head_modules
from trainables.batches import Batch
from trainables.dropout import Masks, draw, drop
from trainables.dropout_sites import MaskKind
from trainables.graphs import Recorder, Recording
from trainables.guests import Guest
from trainables.precision import computing_in
from trainables.stacked_layers import AdaptedLinear, OwnLinear, StackedAdapters
from trainables.stacks import Stacks

IGNORED = -100
"""The label of a text that only pads a batch."""


@dataclass(frozen=True)
class _Together:
    """The guests' batches in one, padded."""

    inputs: Mapping[str, torch.Tensor]  # the model's, [guests x texts, tokens]
    labels: torch.Tensor  # [guests, texts]
    shares: torch.Tensor  # [guests]; of each example in its guest's loss

    def copy_(self, other: _Together) -> None:
        """Fill the tensors with those of other batches of the same shape."""
        for own, new in ((self.labels, other.labels), (self.shares, other.shares)):
            own.copy_(new, non_blocking=True)
        for name, values in other.inputs.items():
            self.inputs[name].copy_(values, non_blocking=True)

    def to(self, device: torch.device) -> _Together:
        """Return it with its tensors on the device."""
        inputs = {name: values.to(device, non_blocking=True) for name, values in self.inputs.items()}
        labels, shares = (one.to(device, non_blocking=True) for one in (self.labels, self.shares))
        return _Together(inputs, labels, shares)

    @property
    def shape(self) -> tuple[object, ...]:
        """Passes of one shape do the same work, with masks of one shape."""
        return (*self.labels.shape, self.inputs["input_ids"].shape[1], *self.inputs)


DrawnMasks = Mapping[MaskKind, torch.Tensor]
"""By kind, ``[sites, guests, texts, ...]``; values that only pad are left from earlier passes."""

Inputs = tuple[_Together, DrawnMasks]
"""Of a pass, on the device."""

Outputs = tuple[torch.Tensor, torch.Tensor]
"""Of a pass: logits ``[guests, texts, labels]`` and mean losses ``[guests]``, both detached."""


class SharedBase:
    """A base that runs the batches of guests of one kind in one pass, and trains the guests.

    Arguments:
        base: the base model's weights.
        first: lends its linear layers, which are equal in all guests of its kind.
        say: is told if passes cannot be recorded, and why.
    """

    def __init__(self, base: BaseModel, first: Guest, say: Callable[[str], None] = print) -> None:
        self._device = first.trained.device
        self._model = build_model(base, seed=0)
        self._model.train()
        self._masks = Masks(self._model, longest=1)  # guests have masks drawn ahead, or no dropout
        self._lend(first)
        nn.Module.to(self._model, self._device).requires_grad_(False)
        self._guests: list[Guest] = []  # in the order of rows of the stacks
        self._stacks = Stacks({}, 0, self._device)
        self._of_adapters: dict[tuple[int | None, ...], torch.Tensor] = {}  # the current step's masks
        self._generator = torch.Generator(self._device)
        self._pad_token_id: int = self._model.config.pad_token_id
        self._scalings, self._are_dora = (torch.zeros(0, 0, device=self._device) for _ in range(2))
        self._factors = torch.zeros(0, device=self._device)  # of what adapters' dropout keeps
        self._squared_norms: dict[str, torch.Tensor] = {}  # of the base's weights, by layer, for DoRA
        self._adapters: dict[str, StackedAdapters] = {}  # of these guests, by layer
        self._anchor = torch.zeros((), device=self._device, requires_grad=True)
        is_recorded = first.trained.graphs is not None
        self._recorder = Recorder("a pack", self._device, say) if is_recorded else None
        self._is_first_pass = True
        self._recorded: dict[tuple[object, ...], Recording[Inputs, Outputs]] = {}  # by shape
        self._room: dict[MaskKind, torch.Tensor] = {}  # for the masks of a pass, the largest so far

    def _lend(self, first: Guest) -> None:
        """Compute linear layers by those of a guest and by stacks; drop the model's own, unquantized ones."""
        heads = tuple(f"{name}." for name in head_modules(self._model))
        for name, module in self._model.named_modules():
            if name in first.linear:
                vars(module)["forward"] = partial(self._linear, name, first.linear[name])
            elif isinstance(module, nn.Linear) and f"{name}.".startswith(heads):
                vars(module)["forward"] = partial(self._head, name)
            else:
                continue
            for key, own in list(module.named_parameters(recurse=False)):
                setattr(module, key, nn.Parameter(own.new_empty(0), requires_grad=False))

    @property
    def guests(self) -> Sequence[Guest]:
        """The current guests, in the order in which :meth:`losses` takes their batches."""
        return tuple(self._guests)

    @property
    def count_recorded(self) -> int:
        """How many kinds of passes are recorded."""
        return len(self._recorded)

    def host(self, guests: Sequence[Guest]) -> None:
        """Make these the only guests; those that leave get back what they have trained."""
        for guest in self.guests:
            if guest not in guests:
                self.let_go(guest)
        coming = [guest for guest in guests if guest not in self._guests]
        shapes = [{name: tuple(one.shape) for name, one in guest.own.items()} for guest in coming]
        enough = len(guests) <= self._stacks.rows and all(self._stacks.fits(one) for one in shapes)
        if coming and not enough:
            coming = list(guests)
            for guest in self.guests:
                self.let_go(guest)
            shapes = [{name: tuple(one.shape) for name, one in guest.own.items()} for guest in coming]
            rows = 1 << (len(guests) - 1).bit_length()  # with room for later guests
            self.forget()  # all that was recorded works on the old stacks
            self._stacks = Stacks(_largest([self._stacks.shapes, *shapes]), rows, self._device)
            of_adapters = len(guests[0].adapted), rows
            self._scalings = torch.zeros(of_adapters, device=self._device)
            self._are_dora = torch.zeros(of_adapters, dtype=torch.bool, device=self._device)
            self._factors = torch.ones(rows, device=self._device)
        for guest in coming:
            self._stacks.take_in(guest.trained, guest.own)
            self._guests.append(guest)
        if coming or not self._adapters:
            self._adapters = self._find_adapters()

    def let_go(self, guest: Guest) -> None:
        """Remove a guest, if it is here, and give it back what it has trained."""
        if guest not in self._guests:
            return
        self._stacks.take_out(guest.trained)
        self._adapters = {}
        self._guests[self._guests.index(guest)] = self._guests[-1]
        self._guests.pop()

    def losses(self, batches: Sequence[Batch], dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return each guest's logits, and their mean losses ``[guests]``, and compute gradients for a step.

        Masks are drawn from each guest's own random stream.

        Arguments:
            batches: one of each guest.
            dtype: to compute in.
        """
        logits, losses = self._outputs(batches, self._put_together(batches), dtype)
        return [own[: len(batch.labels)] for own, batch in zip(logits, batches, strict=True)], losses

    def _put_together(self, batches: Sequence[Batch]) -> _Together:
        """Concatenate batches, on the CPU, in memory that a GPU copies from while the CPU goes on."""
        pinned = self._device.type == "cuda"
        trials, texts = len(batches), max(len(batch.labels) for batch in batches)
        longest = max(batch.input_ids.shape[1] for batch in batches)
        shape = (trials, texts, longest)
        inputs = {name: torch.zeros(shape, dtype=torch.long, pin_memory=pinned) for name in batches[0].inputs}
        inputs["input_ids"].fill_(self._pad_token_id)
        inputs["attention_mask"][:, :, 0] = 1  # a text that only pads attends to itself
        labels = torch.full((trials, texts), IGNORED, pin_memory=pinned)
        for row, batch in enumerate(batches):
            count, length = batch.input_ids.shape
            for name, values in batch.inputs.items():
                inputs[name][row, :count, :length] = values
            labels[row, :count] = batch.labels
        rows = {name: one.flatten(0, 1) for name, one in inputs.items()}
        shares = torch.tensor([batch.weight / len(batch.labels) for batch in batches], pin_memory=pinned)
        return _Together(rows, labels, shares)

    def _outputs(self, batches: Sequence[Batch], due: _Together, dtype: torch.dtype) -> Outputs:
        """Do a pass, with masks drawn: as it is, or by launching one that was recorded."""
        shape = (*due.shape, dtype, any(one.is_dora is not None for one in self._adapters.values()))
        recording = self._recorded.get(shape)
        masks = recording.inputs[1] if recording else self._make_room(due)
        self._draw(batches, masks)
        if recording is None:
            if self._recorder and not self._is_first_pass:
                make_inputs = partial(self._inputs, due, masks)
                recording = self._recorder.record(make_inputs, partial(self._compute, dtype))
            self._is_first_pass = False
            if recording is None:
                self._let_go_of_recorded()
                return self._compute(dtype, self._inputs(due, masks))
            self._recorded[shape] = recording
        recording.inputs[0].copy_(due)
        recording.graph.replay()
        logits, losses = recording.result
        return logits, losses.clone()

    def _inputs(self, due: _Together, masks: DrawnMasks) -> Inputs:
        return due.to(self._device), masks

    def _make_room(self, due: _Together) -> DrawnMasks:
        """Return masks to fill, which lie where those of all passes do: one pass follows another."""
        texts, longest = due.labels.shape[1], due.inputs["input_ids"].shape[1]
        sizes = {
            _of_all(kind): (count, len(self._guests), texts, *kind.sizes(longest))
            for kind, count in self._guests[0].trained.masks.counts.items()
        }
        if any(kind not in self._room or len(self._room[kind]) < prod(size) for kind, size in sizes.items()):
            rooms = {kind: max(prod(size), len(self._room.get(kind, ()))) for kind, size in sizes.items()}
            self.forget()  # recorded passes read their masks where they were
            for kind, room in rooms.items():
                self._room[kind] = torch.zeros(room, dtype=torch.bool, device=self._device)
        return {kind: self._room[kind][: prod(size)].view(size) for kind, size in sizes.items()}

    def _compute(self, dtype: torch.dtype, inputs: Inputs) -> Outputs:
        """Compute logits, losses and gradients; those of the base's weights are nobody's."""
        due, masks = inputs
        self._stacks.begin_gradients()
        self._masks.put(masks)
        self._guests[0].trained.masks.put({})  # counts from the first adapter again
        self._of_adapters = {kind.shape: own for kind, own in masks.items() if kind.of_adapters}
        with computing_in(dtype, self._device):
            whole = self._model(**due.inputs).logits.float()
        each = cross_entropy(whole, due.labels.flatten(), reduction="none", ignore_index=IGNORED)
        losses = each.view(due.labels.shape).sum(dim=1) * due.shares
        # The base is frozen: no gradient of one trial's loss reaches another's parameters.
        losses.sum().backward()
        return whole.detach().unflatten(0, due.labels.shape), losses.detach()

    def forget(self) -> None:
        """Let go of all that was recorded, and of the memory for masks."""
        self._let_go_of_recorded()
        self._room.clear()
        self._masks.put({})
        self._of_adapters = {}

    def _let_go_of_recorded(self) -> None:
        self._recorded.clear()
        if self._recorder:
            self._recorder.forget()

    def step(self, max_gradient_norms: Sequence[float]) -> None:
        """Take each guest's optimizer step, by the gradients of the last :meth:`losses`."""
        self._stacks.step(max_gradient_norms)

    def _draw(self, batches: Sequence[Batch], masks: DrawnMasks) -> None:
        """Draw each guest's masks from its own stream, as it does alone."""
        for row, (guest, batch) in enumerate(zip(self._guests, batches, strict=True)):
            stream, (texts, longest) = guest.trained.stream, batch.input_ids.shape
            self._generator.set_state(stream.state[self._device.type])
            for kind in guest.trained.masks.counts:
                of_guest = masks[_of_all(kind)][:, row]
                size = (len(of_guest), texts, *kind.sizes(longest))
                draw(of_guest[tuple(map(slice, size))], kind.p, self._generator)
            stream.state = {**stream.state, self._device.type: self._generator.get_state()}

    def _linear(self, name: str, layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Compute a linear layer of the base and each guest's adapter, if they have one."""
        if name not in self._guests[0].adapted:
            result: torch.Tensor = layer(inputs)
            return result
        rows = inputs.reshape(len(self._guests), -1, inputs.shape[-1])
        dropped = self._drop(name, inputs)
        result = AdaptedLinear.apply(self._anchor, rows, dropped, layer, self._adapters[name])
        return result.view(*inputs.shape[:-1], -1)

    def _drop(self, name: str, inputs: torch.Tensor) -> torch.Tensor | None:
        """Return the adapters' inputs after dropout, ``[guests, tokens, inputs]``; None if they have none."""
        if not self._of_adapters:
            return None
        (dropout,) = self._guests[0].adapted[name].lora_dropout.values()
        kind, index = self._guests[0].trained.masks.next_site(dropout)
        kept = drop(inputs, self._of_adapters[kind.shape][index], 1)
        kept = kept.view(len(self._guests), -1, inputs.shape[-1])
        return kept if self._adapters[name].is_dora is None else kept * self._factors[: len(kept), None, None]

    def _find_adapters(self) -> dict[str, StackedAdapters]:
        """Note, where recorded passes read it, what the guests' adapters are."""
        if not (names := list(self._guests[0].adapted)):
            return {}
        count = len(self._guests)
        scalings = torch.tensor([[guest.scaling(name) for guest in self._guests] for name in names])
        are_dora = torch.tensor(
            [[f"{name}.magnitude" in guest.own for guest in self._guests] for name in names]
        )
        factors = torch.tensor([guest.factor for guest in self._guests])
        some_are_dora = bool(are_dora.any())
        self._factors[:count] = factors
        self._scalings[:, :count] = scalings if some_are_dora else scalings * factors
        self._are_dora[:, :count] = are_dora
        for guest in self._guests:
            for name, layer in guest.adapted.items():
                if layer.lora_variant and name not in self._squared_norms:
                    assert isinstance(layer.base_squared_norms, torch.Tensor)
                    self._squared_norms[name] = layer.base_squared_norms
        return {
            name: StackedAdapters(
                self._stacks,
                name,
                scaling[:count, None, None],
                is_dora[:count, None] if some_are_dora else None,
                self._squared_norms.get(name),
            )
            for name, scaling, is_dora in zip(names, self._scalings, self._are_dora, strict=True)
        }

    def _head(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """Compute each guest's own linear layer."""
        rows = inputs.reshape(len(self._guests), -1, inputs.shape[-1])
        result: torch.Tensor = OwnLinear.apply(self._anchor, rows, self._stacks, name)
        return result.view(*inputs.shape[:-1], -1)


def _of_all(kind: MaskKind) -> MaskKind:
    """Return a kind of masks for all guests, whose adapters drop shares of their own."""
    return replace(kind, p=0.0) if kind.of_adapters else kind


def _largest(all_shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    largest: dict[str, tuple[int, ...]] = {}
    for shapes in all_shapes:
        for name, shape in shapes.items():
            largest[name] = tuple(map(max, shape, largest.get(name, shape)))
    return largest
