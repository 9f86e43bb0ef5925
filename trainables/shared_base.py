"""One forward pass through a frozen base for the batches of several trials, each with its own adapters.

Batches are concatenated, ``[trials x texts, tokens]``, each padded to the most texts and the longest text.
Trained parameters are in stacks (:mod:`trainables.stacks`), so that an adapter or a head is one product for
all trials, and each trial has the dropout masks it has alone (:mod:`trainables.dropout`). So every trial gets
what it would get alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from trainables.base_model import LINEAR_LAYERS, BaseModel, build_model, head_modules
from trainables.batches import Batch
from trainables.dropout import MaskKind, Masks, keep, scale
from trainables.methods.low_rank_layers import LowRankLayer
from trainables.precision import computing_in
from trainables.stacked_layers import AdaptedLinear, OwnLinear, StackedAdapters
from trainables.stacks import Stacks
from trainables.training import Trained

IGNORED = -100
"""The label of a text that only pads a batch."""


class NotTogetherError(Exception):
    """Raise when a trial's model cannot share the forward pass, with the reason."""


@dataclass(frozen=True, eq=False)
class Guest:
    """A trial that shares the forward pass through its base."""

    trained: Trained
    linear: Mapping[str, nn.Module]  # the frozen linear layers of its base, without adapters
    adapted: Mapping[str, LowRankLayer]  # those that have adapters, as PEFT has wrapped them
    own: Mapping[str, nn.Parameter]  # what it trains, by the names of their stacks

    @property
    def kind(self) -> tuple[object, ...]:
        """Guests of one kind can share a pass: the same layers have adapters, with dropout in all or none."""
        drops = any(kind.of_adapters for kind in self.trained.masks.counts)
        return (*(type(layer) for layer in self.linear.values()), *self.adapted, drops)

    def scaling(self, name: str) -> float:
        """Return the scaling of an adapter's update."""
        (scaling,) = self.adapted[name].scaling.values()
        return float(scaling)


def make_guest(trained: Trained) -> Guest:
    """Find the parts of a trial's model.

    Raises:
        NotTogetherError: if it trains more than low-rank adapters and a head, both of linear layers.
    """
    model = trained.model.get_base_model() if isinstance(trained.model, PeftModel) else trained.model
    if trained.stepped is not trained.model:
        raise NotTogetherError("several processes train it")
    assert isinstance(model, PreTrainedModel)
    if model.is_activation_checkpointing:
        raise NotTogetherError("it recomputes activations in the backward pass")
    if trained.masks.counts and not trained.masks.is_of_use:
        raise NotTogetherError("its dropout masks cannot be drawn ahead")
    frozen: dict[str, nn.Module] = {}
    adapted: dict[str, LowRankLayer] = {}
    own: dict[str, nn.Parameter] = {}
    for name, module in model.base_model.named_modules(prefix=model.base_model_prefix):
        if isinstance(module, LowRankLayer):
            frozen[name], adapted[name] = module.get_base_layer(), module
            own |= _of_adapter(name, module)
        elif isinstance(module, LINEAR_LAYERS) and not any(name.startswith(f"{one}.") for one in adapted):
            frozen[name] = module
    for name, module in head_modules(model).items():
        head = module
        if isinstance(module, ModulesToSaveWrapper):
            (adapter,) = module.active_adapters
            head = module.modules_to_save[adapter]
        for inner, layer in head.named_modules(prefix=name):
            if isinstance(layer, nn.Linear):
                own |= {f"{inner}.{key}": one for key, one in layer.named_parameters(recurse=False)}
    known = {id(one) for one in own.values()}
    if any(one.requires_grad and id(one) not in known for one in model.parameters()):
        raise NotTogetherError("it trains weights of the base itself, or of layers that are not linear")
    return Guest(trained, frozen, adapted, own)


def _of_adapter(name: str, layer: LowRankLayer) -> dict[str, nn.Parameter]:
    (adapter,) = layer.active_adapters
    own: dict[str, Any] = {
        f"{name}.a": layer.lora_A[adapter].weight,
        f"{name}.b": layer.lora_B[adapter].weight,
    }
    if layer.lora_variant:
        own[f"{name}.magnitude"] = layer.lora_magnitude_vector[adapter].weight
    return own


class SharedBase:
    """A base that runs the batches of guests of one kind in one pass, and trains the guests.

    Arguments:
        base: the base model's weights.
        first: lends its linear layers, which are equal in all guests of its kind.
    """

    def __init__(self, base: BaseModel, first: Guest) -> None:
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
        self._adapters: dict[str, StackedAdapters] = {}  # of these guests, by layer
        self._anchor = torch.zeros((), device=self._device, requires_grad=True)

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
            self._stacks = Stacks(_largest([self._stacks.shapes, *shapes]), rows, self._device)
        self._adapters = {} if coming else self._adapters
        for guest in coming:
            self._stacks.take_in(guest.trained, guest.own)
            self._guests.append(guest)

    def let_go(self, guest: Guest) -> None:
        """Remove a guest, if it is here, and give it back what it has trained."""
        if guest not in self._guests:
            return
        self._stacks.take_out(guest.trained)
        self._adapters = {}
        self._guests[self._guests.index(guest)] = self._guests[-1]
        self._guests.pop()
        if not self._guests:
            self._stacks = Stacks({}, 0, self._device)

    def losses(self, batches: Sequence[Batch], dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return each guest's logits, and their mean losses ``[guests]``, dropout included.

        Masks are drawn from each guest's own random stream.

        Arguments:
            batches: one of each guest.
            dtype: to compute in.
        """
        trials, texts = len(batches), max(len(batch.labels) for batch in batches)
        longest = max(batch.input_ids.shape[1] for batch in batches)
        inputs = {name: torch.zeros((trials, texts, longest), dtype=torch.long) for name in batches[0].inputs}
        inputs["input_ids"].fill_(self._pad_token_id)
        inputs["attention_mask"][:, :, 0] = 1  # a text that only pads attends to itself
        labels = torch.full((trials, texts), IGNORED)
        for row, batch in enumerate(batches):
            count, length = batch.input_ids.shape
            for name, values in batch.inputs.items():
                inputs[name][row, :count, :length] = values
            labels[row, :count] = batch.labels
        self._draw(batches, texts, longest)
        labels = labels.to(self._device, non_blocking=True)
        rows = {name: one.flatten(0, 1).to(self._device, non_blocking=True) for name, one in inputs.items()}
        with computing_in(dtype, self._device):
            whole = self._model(**rows).logits.float()
        each = cross_entropy(whole, labels.flatten(), reduction="none", ignore_index=IGNORED)
        shares = torch.tensor([batch.weight / len(batch.labels) for batch in batches])
        losses = each.view(trials, texts).sum(dim=1) * shares.to(self._device)
        logits = whole.detach().unflatten(0, (trials, texts))
        return [own[: len(batch.labels)] for own, batch in zip(logits, batches, strict=True)], losses

    def step(self, losses: torch.Tensor, max_gradient_norms: Sequence[float]) -> None:
        """Take each guest's optimizer step on its loss."""
        # The base is frozen: no gradient of one trial's loss reaches another's parameters.
        losses.sum().backward()
        self._stacks.step(max_gradient_norms)

    def _draw(self, batches: Sequence[Batch], texts: int, longest: int) -> None:
        """Draw each guest's masks from its own stream, as it does alone."""
        drawn: dict[MaskKind, torch.Tensor] = {}
        kept: dict[MaskKind, torch.Tensor] = {}
        for row, (guest, batch) in enumerate(zip(self._guests, batches, strict=True)):
            stream, own_texts, own_longest = guest.trained.stream, *batch.input_ids.shape
            self._generator.set_state(stream.state[self._device.type])
            for kind, count in guest.trained.masks.counts.items():
                key = MaskKind(0, kind.shape, True) if kind.of_adapters else kind
                if key not in drawn:
                    sizes = (len(batches), count, texts, *kind.sizes(longest))
                    drawn[key] = torch.zeros(sizes, device=self._device)
                    kept[key] = torch.ones((len(batches), *(1 for _ in sizes[1:])))
                kept[key][row] = 1 - kind.p
                place, size = drawn[key][row], (count, own_texts, *kind.sizes(own_longest))
                if place.shape == size:
                    place.uniform_(generator=self._generator)
                else:
                    values = torch.rand(size, device=self._device, generator=self._generator)
                    place[tuple(slice(one) for one in size)] = values
            stream.state = {**stream.state, self._device.type: self._generator.get_state()}
        for key, masks in drawn.items():
            scale(masks, kept[key].to(self._device, non_blocking=True) if key.of_adapters else 1 - key.p)
            drawn[key] = masks.transpose(0, 1).contiguous()  # drawn trial by trial, used site by site
        self._masks.put(drawn)
        self._guests[0].trained.masks.put({})  # counts from the first adapter again
        self._of_adapters = {key.shape: masks for key, masks in drawn.items() if key.of_adapters}

    def _linear(self, name: str, layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Compute a linear layer of the base and each guest's adapter, if they have one."""
        if name not in self._guests[0].adapted:
            result: torch.Tensor = layer(inputs)
            return result
        rows = inputs.reshape(len(self._guests), -1, inputs.shape[-1])
        dropped = self._drop(name, inputs)
        if name not in self._adapters:
            self._adapters[name] = self._find_adapters(name)
        result = AdaptedLinear.apply(self._anchor, rows, dropped, layer, self._adapters[name])
        return result.view(*inputs.shape[:-1], -1)

    def _drop(self, name: str, inputs: torch.Tensor) -> torch.Tensor | None:
        """Return the adapters' inputs after dropout, ``[guests, tokens, inputs]``; None if they have none."""
        if not self._of_adapters:
            return None
        (dropout,) = self._guests[0].adapted[name].lora_dropout.values()
        kind, index = self._guests[0].trained.masks.next_site(dropout)
        mask = self._of_adapters[kind.shape][index]
        return keep(inputs, mask, 1).view(len(self._guests), -1, inputs.shape[-1])

    def _find_adapters(self, name: str) -> StackedAdapters:
        scaling = torch.tensor([guest.scaling(name) for guest in self._guests])
        is_dora = [f"{name}.magnitude" in guest.own for guest in self._guests]
        norms = [layer for guest in self._guests if (layer := guest.adapted[name]).lora_variant]
        return StackedAdapters(
            self._stacks,
            name,
            scaling.to(self._device, non_blocking=True)[:, None, None],
            torch.tensor(is_dora).to(self._device, non_blocking=True)[:, None] if any(is_dora) else None,
            norms[0].base_squared_norms if norms else None,  # type: ignore[arg-type]
        )

    def _head(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        """Compute each guest's own linear layer."""
        rows = inputs.reshape(len(self._guests), -1, inputs.shape[-1])
        result: torch.Tensor = OwnLinear.apply(self._anchor, rows, self._stacks, name)
        return result.view(*inputs.shape[:-1], -1)


def _largest(all_shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    largest: dict[str, tuple[int, ...]] = {}
    for shapes in all_shapes:
        for name, shape in shapes.items():
            largest[name] = tuple(map(max, shape, largest.get(name, shape)))
    return largest
