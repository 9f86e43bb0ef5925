"""QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314): LoRA on a base in 4-bit NF4."""

from __future__ import annotations

from trainables.methods.lora import LoraSettings, wrap
from trainables.methods.method import Method

QLORA = Method(
    settings=LoraSettings,
    wrap=wrap,
    # Dettmers et al. 2023, appendix B.2: models up to 13B
    published_default={"rank": 64, "alpha": 16, "learning_rate": 2e-4},
    quantized=True,
)
