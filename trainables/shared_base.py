"""One forward pass through a frozen base for the batches of several trials, each with its own adapters.

Batches lie one behind the other as one row of tokens, ``[1, tokens, width]``. What treats each token alone
(linear layers, norms, activations) runs once over all of them. What does not is done trial by trial, on the
shapes that the trial has alone: attention, dropout, which draws from the trial's own random stream, and the
adapters, by PEFT's own code. So every trial gets what it would get alone, but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from trainables.base_model import LINEAR_LAYERS, BaseModel, build_model
from trainables.batches import Batch
from trainables.last_tokens import attend, attend_as, last_attention, last_mlp, read_tokens, take_read
from trainables.state import Trained
from trainables.training import forward, keep_random_state

ATTENTION = "each_trial_apart"
"""What transformers knows our attention and our masks by."""
LAST_ATTENTION = "each_trial_apart_of_read_tokens"
"""The same for the attention of a last block of whose outputs only read tokens are needed."""


class NotTogetherError(Exception):
    """A trial's model is not one that can share the forward pass, with the reason."""


@dataclass(frozen=True)
class Guest:
    """A trial whose base is computed together with that of others."""

    trained: Trained
    base: nn.Module  # of its own model, adapters included
    linear: Mapping[str, nn.Module]  # the base's linear layers, without adapters
    adapted: Mapping[str, nn.Module]  # those that have adapters, as PEFT has wrapped them
    draws: frozenset[str]  # adapted layers that draw random numbers

    @property
    def kind(self) -> tuple[object, ...]:
        """Guests of one kind can share a pass: the same layers, and gradients in all of them or in none."""
        return (*(type(layer) for layer in self.linear.values()), bool(self.adapted))


def make_guest(trained: Trained) -> Guest:
    """Find the parts of a trial's model.

    Raises:
        NotTogetherError: if it trains more of the base than adapters of linear layers.
    """
    whole = trained.model.get_base_model() if isinstance(trained.model, PeftModel) else trained.model
    if trained.stepped is not trained.model:
        raise NotTogetherError("several processes train it")
    if not isinstance(whole, PreTrainedModel) or whole.config._attn_implementation != "sdpa":
        raise NotTogetherError("its attention is not PyTorch's scaled_dot_product_attention")
    if whole.is_activation_checkpointing:
        raise NotTogetherError("it computes activations again in the backward pass")
    base = whole.base_model
    linear: dict[str, nn.Module] = {}
    adapted: dict[str, nn.Module] = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer) and isinstance(layer := module.get_base_layer(), LINEAR_LAYERS):
            assert isinstance(module, nn.Module)
            linear[name], adapted[name] = layer, module
        elif isinstance(module, LINEAR_LAYERS) and not any(name.startswith(f"{one}.") for one in adapted):
            linear[name] = module
    of_adapters = {id(parameter) for layer in adapted.values() for parameter in layer.parameters()}
    if any(one.requires_grad and id(one) not in of_adapters for one in base.parameters()):
        raise NotTogetherError("it trains weights of the base itself")
    return Guest(trained, base, linear, adapted, frozenset(n for n, one in adapted.items() if _draws(one)))


def _draws(module: nn.Module) -> bool:
    return any(isinstance(one, nn.Dropout) and one.p > 0 for one in module.modules())


@dataclass
class _Joint:
    """The batches of a pass, and whose random stream torch draws from."""

    guests: Sequence[Guest]
    batches: Sequence[Batch]
    pad_token_id: int
    _drawing: Guest | None = None

    @cached_property
    def read(self) -> list[torch.Tensor]:
        """The token of each text that its head reads, ``[examples]`` of each batch."""
        return [read_tokens(batch.input_ids, self.pad_token_id) for batch in self.batches]

    def split(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Cut ``[1, tokens, ...]`` into each trial's ``[examples, longest, ...]``.

        Where there is only the token of each text that the head reads, longest is 1.
        """
        shapes = [batch.input_ids.shape for batch in self.batches]
        if tensor.shape[1] < sum(shape.numel() for shape in shapes):
            shapes = [torch.Size((examples, 1)) for examples, _ in shapes]
        parts = tensor.split([shape.numel() for shape in shapes], dim=1)
        return [part.reshape(*shape, *tensor.shape[2:]) for part, shape in zip(parts, shapes, strict=True)]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Undo :meth:`split`."""
        return torch.cat([part.reshape(1, -1, *part.shape[2:]) for part in parts], dim=1)

    def draw_as(self, guest: Guest | None) -> None:
        """Have torch draw from a trial's random stream."""
        if self._drawing is guest:
            return
        if self._drawing is not None:
            self._drawing.trained.stream.leave()
        if guest is not None:
            guest.trained.stream.enter()
        self._drawing = guest


_JOINT: ContextVar[_Joint] = ContextVar("joint")


class SharedBase:
    """A base that computes the batches of guests of one kind in one pass.

    Arguments:
        base: the base model's weights.
        first: lends its linear layers, of which all guests of its kind have equal ones.
    """

    def __init__(self, base: BaseModel, first: Guest) -> None:
        model = build_model(base, seed=0)
        nn.Module.to(model, first.trained.device).requires_grad_(False)
        model.set_attn_implementation(ATTENTION)
        if model.config._attn_implementation != ATTENTION:
            raise NotTogetherError("its attention cannot be replaced")
        self._base: nn.Module = model.base_model.train()
        pooler = getattr(self._base, "pooler", None)
        self._pad_token_id = model.config.pad_token_id
        last = last_mlp(model)
        if (attention := last_attention(model)) is not None:
            attend_as(attention, LAST_ATTENTION)
            attention.register_forward_hook(_give_to_all)
        for name, module in self._base.named_modules():
            if module is pooler:
                # It sees one vector of each text, not of each token, so each trial's own does its work.
                vars(module)["forward"] = lambda hidden: None
            elif isinstance(module, LINEAR_LAYERS):
                vars(module)["forward"] = partial(_linear, name, first.linear[name])
            elif isinstance(module, nn.Dropout):
                vars(module)["forward"] = partial(_dropout, module)
            elif last is not None and module is last:
                vars(module)["forward"] = partial(_last_mlp, module)

    def logits(
        self, guests: Sequence[Guest], batches: Sequence[Batch], dtype: torch.dtype
    ) -> list[torch.Tensor]:
        """Return what :func:`forward` returns for each trial and its batch, dropout included.

        Arguments:
            guests: of one kind; each one's random stream is drawn from.
            batches: one of each, on the trials' device.
            dtype: to compute in.

        Raises:
            NotTogetherError: if the architecture does not allow it.
        """
        joint = _Joint(guests, batches, self._pad_token_id)
        device = batches[0].input_ids.device
        rows = [batch.input_ids.shape for batch in batches]
        positions = [torch.arange(longest, device=device).repeat(examples) for examples, longest in rows]
        tokens = torch.cat([batch.input_ids.reshape(-1) for batch in batches])[None]
        token = _JOINT.set(joint)
        try:
            with (
                keep_random_state(device),
                torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16),
                torch.set_grad_enabled(any(guest.adapted for guest in guests)),
            ):
                output = self._base(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    position_ids=torch.cat(positions)[None],
                    use_cache=False,
                )
                joint.draw_as(None)
        finally:
            _JOINT.reset(token)
        if [name for name, value in output.items() if value is not None] != ["last_hidden_state"]:
            raise NotTogetherError("its base returns more than a vector per token")
        return [
            _head(guest, batch, type(output)(last_hidden_state=hidden), dtype)
            for guest, batch, hidden in zip(
                guests, batches, joint.split(output.last_hidden_state), strict=True
            )
        ]


def _head(guest: Guest, batch: Batch, output: Any, dtype: torch.dtype) -> torch.Tensor:
    """Run a trial's own model, with its base's output known already."""
    with guest.trained.stream.active():
        if (pooler := getattr(guest.base, "pooler", None)) is not None:
            output["pooler_output"] = pooler(output.last_hidden_state)
        with _answering(guest.base, output):
            return forward(guest.trained.model, batch, dtype)


@contextmanager
def _answering(module: nn.Module, output: Any) -> Iterator[None]:
    """Have a module answer with what was computed already."""
    vars(module)["forward"] = lambda *arguments, **options: output
    try:
        yield
    finally:
        del vars(module)["forward"]


def _linear(name: str, layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Compute a linear layer for all tokens, and each trial's adapters for its own."""
    joint = _JOINT.get()
    # Not layer(inputs): it may belong to a guest, where another answer is put in its place below.
    result: torch.Tensor = type(layer).forward(layer, inputs)
    if not any(name in guest.adapted for guest in joint.guests):
        return result
    parts = []
    for guest, own, known in zip(joint.guests, joint.split(inputs), joint.split(result), strict=True):
        adapted = guest.adapted.get(name)
        if adapted is None:
            parts.append(known)
            continue
        if name in guest.draws:
            joint.draw_as(guest)
        with _answering(guest.linear[name], known):
            parts.append(adapted(own))
    return joint.join(parts)


def _last_mlp(mlp: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Compute the last MLP of the tokens that heads read, as it is computed of a trial alone."""
    joint = _JOINT.get()
    read = zip(joint.split(hidden), joint.read, strict=True)
    return _for_all(type(mlp).forward(mlp, joint.join([take_read(own, its) for own, its in read])))


def _give_to_all(
    module: nn.Module, arguments: object, output: tuple[torch.Tensor, None]
) -> tuple[torch.Tensor, None]:
    """Have the last block add what its attention made of the read tokens to all tokens."""
    return _for_all(output[0]), None


def _for_all(result: torch.Tensor) -> torch.Tensor:
    """Make ``[1, texts, width]``, of the read tokens, to ``[1, tokens, width]``."""
    joint = _JOINT.get()
    texts = zip(joint.split(result), joint.batches, strict=True)
    return joint.join([own.expand(-1, batch.input_ids.shape[1], -1) for own, batch in texts])


def _dropout(module: nn.Dropout, inputs: torch.Tensor) -> torch.Tensor:
    """Drop each trial's values as it would alone."""
    if not module.p:
        return inputs
    joint = _JOINT.get()
    parts = []
    for guest, own in zip(joint.guests, joint.split(inputs), strict=True):
        joint.draw_as(guest)
        parts.append(nn.Dropout.forward(module, own))
    return joint.join(parts)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Sequence[torch.Tensor | None],
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Let each trial's tokens attend to each other; tensors are ``[1, heads, tokens, width]``."""
    joint = _JOINT.get()
    is_last = module.config._attn_implementation == LAST_ATTENTION  # type: ignore[union-attr]
    each = [joint.split(tensor.transpose(1, 2)) for tensor in (query, key, value)]
    parts = []
    for guest, read, mask, *tensors in zip(joint.guests, joint.read, attention_mask, *each, strict=True):
        if dropout:
            joint.draw_as(guest)
        q, k, v = (tensor.transpose(1, 2) for tensor in tensors)
        parts.append(
            attend(module, q, k, v, mask, read, dropout=dropout, **options)
            if is_last
            else sdpa_attention_forward(module, q, k, v, mask, dropout=dropout, **options)[0]
        )
    return joint.join(parts), None


def _masks(attention_mask: torch.Tensor | None, **options: Any) -> tuple[torch.Tensor | None, ...]:
    """Make each trial's mask as transformers makes it for the trial alone."""
    return tuple(
        sdpa_mask(
            **{
                **options,
                "batch_size": batch.input_ids.shape[0],
                "q_length": batch.input_ids.shape[1],
                "kv_length": batch.input_ids.shape[1],
                "attention_mask": batch.attention_mask.to(torch.bool),
            }
        )
        for batch in _JOINT.get().batches
    )


for _name in (ATTENTION, LAST_ATTENTION):
    AttentionInterface.register(_name, _attention)
AttentionMaskInterface.register(ATTENTION, _masks)
