"""What a method is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from trainables.settings import Settings


class MethodSettings(Settings):
    """A method's own hyperparameters; those of training are in ``TrainingSettings``."""


@dataclass(frozen=True)
class Method:
    """A way to fine-tune: how to wrap the base model, and nothing else.

    ``wrap(model, settings)`` returns the model to train, with ``requires_grad`` set as the method wants.
    """

    settings: type[MethodSettings]
    wrap: Callable[[PreTrainedModel, Any], nn.Module]
    published_default: Mapping[str, object]  # first trial of every study; each method says where it is from
    quantized: bool = False  # whether the base that it wraps has 4-bit linear layers
