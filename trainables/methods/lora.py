"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685), through PEFT."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from pydantic import Field
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainables.base_model import head_modules, linear_layer_names
from trainables.methods.low_rank_layers import speed_up
from trainables.methods.method import Method, MethodSettings


class LoraSettings(MethodSettings):
    """Hyperparameters of low-rank adapters.

    Adapters attach to all linear layers of the base unless ``target_modules`` names some: Dettmers et al.
    2023 (section 4) found that adapters on all of them, not the rank, are what matters for matching full
    fine-tuning, and the rule works for any architecture.
    """

    rank: int = Field(8, ge=1, description="rank of the update")
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapter")
    target_modules: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of layers; null is all linear layers of the base"
    )


def wrap(model: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """Attach LoRA adapters and train them and the head."""
    return wrap_low_rank(model, settings, use_dora=False)


def wrap_low_rank(model: PreTrainedModel, settings: LoraSettings, use_dora: bool) -> PeftModel:
    """Attach low-rank adapters; LoRA, DoRA and QLoRA share this."""
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number works
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules or linear_layer_names(model)),
        modules_to_save=list(head_modules(model)),
        use_dora=use_dora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    speed_up(wrapped)
    return wrapped


LORA = Method(
    settings=LoraSettings,
    wrap=wrap,
    # Hu et al. 2021, table 9: RoBERTa base on SST-2
    published_default={"rank": 8, "alpha": 8, "learning_rate": 5e-4},
)
