"""The dtype to compute in."""

from __future__ import annotations

import torch


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return a context that computes in ``dtype``: by autocast in bfloat16, as it is in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
