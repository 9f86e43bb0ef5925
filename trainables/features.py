"""A frozen base's output for the texts of a split, computed once: it is the same at every evaluation."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from trainables.batches import Batch
from trainables.last_tokens import has_last_token_head, read_tokens, take_read
from trainables.parallel import Group
from trainables.precision import computing_in
from trainables.training import forward


class Features:
    """The inputs of a model's head, ``[texts, width]``, for each batch of a split seen before.

    Arguments:
        model: has a frozen base and a head that reads one token of each text; in eval mode when used.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        head = model.score
        assert isinstance(head, nn.Module)
        self._head = head
        self._known: dict[bytes, torch.Tensor] = {}  # by the batch's examples

    def logits(self, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
        """Return float32 logits ``[examples, labels]``, those of :func:`forward` up to rounding."""
        examples = batch.positions.tobytes()
        if examples not in self._known:
            self._known[examples] = self._compute(batch, dtype)
        with computing_in(dtype, batch.input_ids.device):
            logits: torch.Tensor = self._head(self._known[examples])
        return logits.float()

    def _compute(self, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        watch = self._head.register_forward_pre_hook(lambda head, arguments: seen.append(arguments[0]))
        try:
            forward(self._model, batch, dtype)
        finally:
            watch.remove()
        (hidden,) = seen
        return take_read(hidden, read_tokens(batch.input_ids, self._model.config.pad_token_id))[:, 0]


def remember_features(model: nn.Module, group: Group) -> Features | None:
    """Return a model's :class:`Features`, or None if training changes them."""
    if group.shards_model or not isinstance(model, PreTrainedModel) or not has_last_token_head(model):
        return None
    if any(parameter.requires_grad for parameter in model.base_model.parameters()):
        return None
    return Features(model)
