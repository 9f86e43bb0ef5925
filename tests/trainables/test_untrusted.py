"""Models and datasets that bring code: none runs unless the experiment says so of that model."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from trainables.base_model import build_model
from trainables.data import read_data
from trainables.errors import InputError
from trainables.pretrained import load_base, load_tokenizer
from trainables.settings import DataSettings, ModelSettings

LABELS = ("bad", "good")


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self._file,)


@pytest.fixture
def ran(tmp_path: Path) -> Iterator[Path]:
    """The file that planted code would create; nothing may have."""
    file = tmp_path / "ran"
    yield file
    assert not file.exists(), "code that came with a model or dataset ran"


@pytest.fixture
def model(tmp_path: Path, model_directories: dict[str, Path]) -> Path:
    """A good model of one's own, to be spoiled."""
    directory = tmp_path / "model"
    shutil.copytree(model_directories["gpt2"], directory)
    return directory


def open_model(directory: Path, trusts: bool = False) -> None:
    """Do with a model what a run does."""
    chosen = ModelSettings(path=str(directory), trust_remote_code=trusts)
    tokenizer = load_tokenizer(chosen)
    base = load_base(chosen, LABELS, int(tokenizer.pad_token_id or 0))
    build_model(base, seed=0)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.exists() else {}), **values}))


def test_the_planted_pickle_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pkl", "model.pth"])
@pytest.mark.parametrize("is_archive", [True, False])
def test_pickled_weights_are_refused(model: Path, ran: Path, name: str, is_archive: bool) -> None:
    (model / "model.safetensors").unlink()
    if is_archive:
        torch.save({"transformer.wte.weight": Malicious(ran)}, model / name)
    else:
        (model / name).write_bytes(pickle.dumps(Malicious(ran)))
    with pytest.raises(
        InputError, match=r"model\.path: .*pickled weights only.*convert them once"
    ) as refused:
        open_model(model)
    assert name in str(refused.value)


def test_pickles_beside_the_weights_are_not_read(model: Path, ran: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "vocab.pkl", "tokenizer.pkl"):
        (model / name).write_bytes(pickle.dumps(Malicious(ran)))
    open_model(model)


def test_a_pickle_under_the_name_of_safetensors_is_refused(model: Path, ran: Path) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps(Malicious(ran)))
    with pytest.raises(InputError, match=r"model\.path: .*could not be loaded"):
        open_model(model)


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../outside.bin", "model.safetensors.bin"])
def test_an_index_that_names_pickles_is_refused(model: Path, ran: Path, shard: str) -> None:
    (model / "model.safetensors").unlink()
    (model / shard).write_bytes(pickle.dumps(Malicious(ran)))
    (model / "other.safetensors").touch()
    index = {"metadata": {"total_size": 1}, "weight_map": {"transformer.wte.weight": shard}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model\.path: "):
        open_model(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "../outside.bin"])
def test_a_configuration_that_names_pickles_is_refused(model: Path, ran: Path, name: str) -> None:
    (model / name).write_bytes(pickle.dumps(Malicious(ran)))
    change(model / "config.json", transformers_weights=name)
    with pytest.raises(InputError, match=r"model\.path: "):
        open_model(model)


def test_an_adapter_is_refused(model: Path, ran: Path) -> None:
    change(model / "adapter_config.json", peft_type="LORA", base_model_name_or_path="gpt2", r=2)
    (model / "adapter_model.bin").write_bytes(pickle.dumps(Malicious(ran)))
    with pytest.raises(InputError, match=r"model\.path: .* is an adapter; expected a whole model"):
        open_model(model)


CODE = """
from pathlib import Path
Path({ran!r}).touch()
from transformers import {base}
class Own{base}({base}):
    model_type = "own"
"""


def plant(model: Path, ran: Path) -> None:
    """Have a model bring code for its configuration, model and tokenizer."""
    for module, base in (
        ("configuration_own", "GPT2Config"),
        ("modeling_own", "GPT2ForSequenceClassification"),
        ("tokenization_own", "PreTrainedTokenizerFast"),
    ):
        (model / f"{module}.py").write_text(CODE.format(ran=str(ran), base=base))
    change(
        model / "config.json",
        auto_map={
            "AutoConfig": "configuration_own.OwnGPT2Config",
            "AutoModelForSequenceClassification": "modeling_own.OwnGPT2ForSequenceClassification",
        },
    )
    change(
        model / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "tokenization_own.OwnPreTrainedTokenizerFast"]},
        tokenizer_class="OwnPreTrainedTokenizerFast",
    )


def test_code_of_a_model_that_needs_it_is_refused_with_what_to_do(model: Path, ran: Path) -> None:
    plant(model, ran)
    change(model / "config.json", model_type="own")
    match = r"model\.path: .*needs Python code.*set model\.trust_remote_code: true if you trust it"
    with pytest.raises(InputError, match=match):
        load_tokenizer(ModelSettings(path=str(model)))
    with pytest.raises(InputError, match=match):
        load_base(ModelSettings(path=str(model)), LABELS, 0)


def test_code_of_a_model_that_does_without_is_left_alone(model: Path, ran: Path) -> None:
    plant(model, ran)
    (model / "tokenizer_config.json").unlink()
    open_model_without_tokenizer = ModelSettings(path=str(model))
    build_model(load_base(open_model_without_tokenizer, LABELS, 0), seed=0)


def test_code_of_a_model_that_is_trusted_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    plant(model, tmp_path / "trusted")
    change(model / "config.json", model_type="own")
    with pytest.raises(InputError):
        open_model(model)
    assert not (tmp_path / "trusted").exists()
    load_tokenizer(ModelSettings(path=str(model), trust_remote_code=True))
    assert (tmp_path / "trusted").exists(), "the planted code is no code that could have run"


def test_compiled_code_that_a_configuration_names_is_not_fetched(model: Path, ran: Path) -> None:
    change(model / "config.json", attn_implementation="evil/kernel", _attn_implementation="evil/kernel")
    open_model(model)


def test_code_of_a_dataset_is_refused(tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    directory = tmp_path / "evil"
    directory.mkdir()
    (directory / "evil.py").write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    (directory / "train.pkl").write_bytes(pickle.dumps(Malicious(ran)))
    with pytest.raises(InputError, match=r"data\.path: split 'train' of .* could not be loaded"):
        read_data(DataSettings(path=str(directory), train="train"), seed=0)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".tsv", ".json", ".jsonl", ".pkl"])
def test_a_pickle_under_any_name_is_no_data(tmp_path: Path, ran: Path, ending: str) -> None:
    file = tmp_path / f"train{ending}"
    file.write_bytes(pickle.dumps(Malicious(ran)))
    with pytest.raises(InputError, match=r"data\."):
        read_data(DataSettings(path=None, train=str(file)), seed=0)
