"""What a trial is, and the model, optimizer and random stream that it trains with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from trainables.base_model import BaseModel, build_model, own_trainable_parameters, recompute_activations
from trainables.dropout import SHORT_TEXT, draw_ahead
from trainables.graphs import StepGraphs
from trainables.measure import count_parameters, model_bytes
from trainables.methods import METHODS, MethodSettings
from trainables.parallel import Group, spread
from trainables.quantization import quantize
from trainables.settings import TrainingSettings
from trainables.training import RandomStream, Trained, make_optimizer


@dataclass(frozen=True)
class TrialSpec:
    """Everything that decides a trial's numbers besides the data, the base model and the device."""

    trial_id: str  # such as "lora-003"
    method: str  # the experiment's name for the method
    kind: str  # the method's kind, a key of trainables.methods.METHODS
    seed: int  # decides head and adapter initialization, data order and dropout
    settings: MethodSettings  # the method's own hyperparameters
    training: TrainingSettings
    threads: int = 1  # torch threads on a CPU
    cuda_graphs: bool = True  # records training steps where that is of use


@dataclass(frozen=True)
class ModelSummary:
    """The size of the model that a method makes of the base."""

    trainable_parameters: int
    total_parameters: int
    model_bytes: int


def set_up(
    spec: TrialSpec, base: BaseModel, total_steps: int, device: torch.device, group: Group, longest: int
) -> tuple[Trained, ModelSummary]:
    """Build what a trial trains, on texts of at most ``longest`` tokens, and measure its model."""
    stream = RandomStream(spec.seed, device)
    with stream.active():
        model = wrap_base(base, spec.kind, spec.settings, spec.seed)
    if spec.training.gradient_checkpointing:
        whole = model.get_base_model() if isinstance(model, PeftModel) else model
        assert isinstance(whole, PreTrainedModel)
        recompute_activations(whole)
    if group.rank > 0:  # each rank's share of a batch has dropout of its own
        stream = RandomStream(spec.seed + group.rank, device)
    summary = ModelSummary(*count_parameters(model), model_bytes(model))
    stepped = spread(model, group, device, spec.training.micro_batch_size is not None)
    optimizer, schedule = make_optimizer(model, spec.training, total_steps)
    model.train()
    masks = draw_ahead(model, longest)
    # Steps on long texts, and those of trials that save memory, take longer to compute than to launch.
    is_short = longest <= SHORT_TEXT and not spec.training.saves_memory
    is_recorded = spec.cuda_graphs and device.type == "cuda" and group.size == 1 and is_short
    graphs = StepGraphs(spec.trial_id, optimizer, device) if is_recorded else None
    return Trained(model, stepped, optimizer, schedule, stream, masks, graphs, device, group), summary


def wrap_base(base: BaseModel, kind: str, settings: MethodSettings, seed: int) -> nn.Module:
    """Build the base model with a head from ``seed`` and let the method wrap it."""
    method, model = METHODS[kind], build_model(base, seed)
    if method.quantized:
        quantize(model, base.quantized)
    wrapped = method.wrap(model, settings)
    own_trainable_parameters(wrapped)
    return wrapped


def describe(base: BaseModel, kind: str, settings: MethodSettings) -> ModelSummary:
    """Measure a trial's model by building it."""
    model = wrap_base(base, kind, settings, seed=0)
    return ModelSummary(*count_parameters(model), model_bytes(model))
