"""The base model: loaded once, shared as arrays, rebuilt per trial."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.settings import ModelSettings


@dataclass(frozen=True)
class BaseModel:
    """Base weights as plain arrays, so that the object store shares them without a copy."""

    settings: ModelSettings
    path: str  # what from_pretrained takes: hub id or absolute directory (the cache's for 'embedded')
    config: dict[str, Any]  # AutoConfig's dict, with num_labels, id2label, label2id and pad_token_id set
    weights: dict[str, NDArray[Any]]  # by AutoModelForSequenceClassification parameter name; bfloat16 as uint16
    fingerprint: str  # sha256 of names, shapes and bytes of the weights

    @property
    def parameter_count(self) -> int:
        return sum(int(np.prod(w.shape)) for w in self.weights.values())
