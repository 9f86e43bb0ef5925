"""A small experiment that runs for seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def experiment(tmp_path: Path, model_directories: dict[str, Path], data_files: dict[str, Path]) -> Path:
    """A file that compares five methods on a tiny GPT-2, in ``tmp_path / "runs" / "small"``."""
    file = tmp_path / "small.yaml"
    values = {
        "name": "small",
        "model": {"path": str(model_directories["gpt2"])},
        "data": {
            "path": None,
            "columns": ["sentence", "label"],
            **{name: str(path) for name, path in data_files.items()},
        },
        "training": {"epochs": 2, "batch_size": 8},
        "search": {"trials": 3},
        "confirm": {"seeds": 0},
        "methods": {"head": {}, "full": {}, "lora": {"rank": [2, 4]}, "dora": {}, "qlora": {}},
        "storage": str(tmp_path / "runs"),
    }
    file.write_text(json.dumps(values))  # JSON is YAML
    return file
