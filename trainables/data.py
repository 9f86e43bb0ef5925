"""Examples: read, split, sampled, tokenized once, and drawn in length-bucketed batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenizedSplit:
    """Tokens of one split, flat so that it is shared between processes without a copy."""

    tokens: NDArray[np.int32]  # [total tokens]
    offsets: NDArray[np.int64]  # [examples + 1]; example i is tokens[offsets[i]:offsets[i + 1]]
    labels: NDArray[np.int64]  # [examples]; index into TokenizedData.labels
    example_ids: NDArray[np.int64]  # [examples]; row number in the source split

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TokenizedData:
    """All splits of an experiment."""

    train: TokenizedSplit
    validation: TokenizedSplit
    test: TokenizedSplit
    labels: tuple[str, ...]  # label names, in the order of their indices
    pad_token_id: int
    fingerprint: str  # sha256 of all the above
    splits: dict[str, str]  # how each split was made: {"validation": "file dev.tsv, 872 examples", ...}
