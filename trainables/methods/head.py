"""Linear probing: the base is frozen, only the classification head is trained. The floor for all others."""

from __future__ import annotations

from transformers import PreTrainedModel

from trainables.base_model import head_modules
from trainables.methods.method import Method, MethodSettings


class HeadSettings(MethodSettings):
    """The head has no hyperparameters beyond those of training."""


def wrap(model: PreTrainedModel, settings: HeadSettings) -> PreTrainedModel:
    """Train the head only."""
    model.requires_grad_(False)
    for module in head_modules(model).values():
        module.requires_grad_(True)
    return model


HEAD = Method(
    settings=HeadSettings,
    wrap=wrap,
    # Kingma and Ba 2015, Adam, section 2: the recommended step size
    published_default={"learning_rate": 1e-3},
)
