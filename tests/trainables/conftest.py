"""The data and the bases that several modules train on."""

from __future__ import annotations

from pathlib import Path

import pytest
from prepared import prepare

from trainables.base_model import BaseModel
from trainables.data import TokenizedData


@pytest.fixture(scope="module")
def data(model_directories: dict[str, Path], data_files: dict[str, Path]) -> TokenizedData:
    return prepare(model_directories["gpt2"], data_files).data


@pytest.fixture(scope="module")
def base(architecture: str, model_directories: dict[str, Path], data_files: dict[str, Path]) -> BaseModel:
    return prepare(model_directories[architecture], data_files).base
