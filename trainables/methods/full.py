"""Full fine-tuning: every parameter is trained."""

from __future__ import annotations

from transformers import PreTrainedModel

from trainables.methods.method import Method, MethodSettings


class FullSettings(MethodSettings):
    """Full fine-tuning has no hyperparameters beyond those of training."""


def wrap(model: PreTrainedModel, settings: FullSettings) -> PreTrainedModel:
    """Train everything."""
    return model.requires_grad_(True)


FULL = Method(
    settings=FullSettings,
    wrap=wrap,
    # Radford et al. 2018, Improving Language Understanding by Generative Pre-Training, section 4.1
    published_default={"learning_rate": 6.25e-5},
)
