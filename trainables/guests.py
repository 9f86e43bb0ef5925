"""Trials that share the forward pass through their base (:mod:`trainables.shared_base`), and which can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from trainables.base_model import LINEAR_LAYERS, head_modules
from trainables.methods.low_rank_layers import LowRankLayer
from trainables.training import Trained


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

    @property
    def factor(self) -> float:
        """Return the factor of inputs that its adapters' dropout keeps, 1 if it drops none."""
        return next((1 / (1 - kind.p) for kind in self.trained.masks.counts if kind.of_adapters), 1.0)

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
