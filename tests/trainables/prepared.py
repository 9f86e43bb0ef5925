"""What trials train on: the tokenized data and the base, as a run prepares them once for all its trials."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from tests.conftest import data_settings
from trainables.base_model import BaseModel
from trainables.data import TokenizedData, TokenizedSplit, load_data, read_data
from trainables.pretrained import load_base, load_tokenizer
from trainables.settings import DataSettings, ModelSettings


class Prepared(NamedTuple):
    """Inputs of a trial."""

    data: TokenizedData
    test: TokenizedSplit
    base: BaseModel


def prepare(
    model: Path, files: dict[str, Path], dtype: Literal["float32", "bfloat16"] = "float32", **limits: int
) -> Prepared:
    """Read files of sentences and labels, and a saved model.

    Arguments:
        model: its directory; the tokenizer is there, too.
        files: the splits, without headers.
        dtype: of the base.
        limits: settings of the data: how much of it is taken.
    """
    settings = ModelSettings(path=str(model), dtype=dtype)
    chosen = DataSettings.model_validate({**data_settings(files), **limits})
    data, test = load_data(read_data(chosen, 0), load_tokenizer(settings), 64)
    base = load_base(settings, data.labels, data.pad_token_id)
    for weights in base.weights.values():
        weights.flags.writeable = False  # as they come out of the object store
    return Prepared(data, test, base)
