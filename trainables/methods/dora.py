"""DoRA, weight-decomposed low-rank adaptation (Liu et al. 2024, https://arxiv.org/abs/2402.09353)."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedModel

from trainables.methods.lora import LoraSettings, wrap_low_rank
from trainables.methods.method import Method


def wrap(model: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """Attach DoRA adapters, which learn each weight's direction and magnitude separately."""
    return wrap_low_rank(model, settings, use_dora=True)


DORA = Method(
    settings=LoraSettings,
    wrap=wrap,
    # Liu et al. 2024, table 8: LLaMA-7B
    published_default={"rank": 32, "alpha": 64, "learning_rate": 2e-4},
)
