"""Loading base models: code of their own, padding, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, BertForMaskedLM

from tests.conftest import make_model, make_tokenizer
from trainables.base_model import build_model
from trainables.errors import InputError
from trainables.pretrained import load_base, load_tokenizer
from trainables.settings import ModelSettings

LABELS = ("negative", "positive")

OWN_CODE = """
from transformers import GPT2Config, GPT2ForSequenceClassification


class OwnConfig(GPT2Config):
    model_type = "own"


class OwnForSequenceClassification(GPT2ForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(model_directories: dict[str, Path], tmp_path: Path) -> Path:
    """A model directory with Python code of its own."""
    directory = tmp_path / "own"
    shutil.copytree(model_directories["gpt2"], directory)
    (directory / "modeling_own.py").write_text(OWN_CODE)
    config = json.loads((directory / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_code_that_comes_with_a_model_runs_only_when_asked_for(own_code: Path) -> None:
    with pytest.raises(InputError, match="trust_remote_code"):
        load_base(ModelSettings(path=str(own_code)), LABELS, 0)
    base = load_base(ModelSettings(path=str(own_code), trust_remote_code=True), LABELS, 0)
    model = build_model(base, seed=1)
    assert type(model).__name__ == "OwnForSequenceClassification"
    assert model.config.num_labels == 2
    assert model.config.pad_token_id == 0


def test_a_model_that_reads_padding_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("xlnet", vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="xlnet, whose head reads the last token"):
        load_base(ModelSettings(path=str(tmp_path)), LABELS, 0)


def test_a_base_with_weights_missing_is_refused(tmp_path: Path) -> None:
    """BERT's masked language model has no pooler, which its classifier needs."""
    BertForMaskedLM(make_model("bert").config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no weights that fit bert\.pooler\.dense\.\w+, bert\.pooler"):
        load_base(ModelSettings(path=str(tmp_path)), LABELS, 0)


def test_a_tokenizer_without_padding_pads_with_its_end_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = "film"
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "model.safetensors").touch()
    assert load_tokenizer(ModelSettings(path=str(tmp_path))).pad_token == "film"


def test_a_base_whose_weights_have_another_shape_is_refused(
    model_directories: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(model_directories["gpt2"], tmp_path / "gpt2")
    config = tmp_path / "gpt2" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "n_positions": 128}))
    with pytest.raises(InputError, match=r"no weights that fit transformer\.wpe\.weight"):
        load_base(ModelSettings(path=str(tmp_path / "gpt2")), ("0", "1"), 0)


def test_a_model_without_a_tokenizer_is_refused(model_directories: dict[str, Path], tmp_path: Path) -> None:
    """Such as a checkpoint of an earlier run: each text would have no token."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model_directories["gpt2"] / name, tmp_path)
    with pytest.raises(InputError, match=r"has no tokenizer; expected its files beside the weights"):
        load_tokenizer(ModelSettings(path=str(tmp_path)))
