"""Loads a pretrained model and its tokenizer, once, from a hub, a directory or the built-in one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from trainables.base_model import BaseModel, dtype_of
from trainables.errors import InputError
from trainables.settings import ModelSettings

READS_PADDING = ("xlnet",)
"""Architectures, by ``model_type``, whose head reads the last token of a batch's longest text."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of files in which PyTorch pickles weights."""

CONVERT = (
    "expected *.safetensors. If you trust their author, convert them once: "
    "python -c \"import transformers as t; t.AutoModel.from_pretrained('OLD').save_pretrained('NEW'); "
    "t.AutoTokenizer.from_pretrained('OLD').save_pretrained('NEW')\""
)


def resolve_path(settings: ModelSettings, say: Callable[[str], None] = print) -> str:
    """Return what ``from_pretrained`` takes: the cache's directory, an absolute directory or a hub id.

    Raises:
        InputError: if a path that looks like a directory has no model in it.
    """
    if settings.path == "embedded":
        from trainables.embedded import embedded_model_directory

        return str(embedded_model_directory(say))
    directory = Path(settings.path).expanduser()
    if directory.is_dir():
        _check_model_directory(directory)
        return str(directory.resolve())
    if directory.exists() or settings.path.startswith((".", "/", "~")):
        raise InputError("model.path", f"no such directory: {settings.path}; expected a model's directory")
    return settings.path


def _check_model_directory(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise InputError("model.path", f"{directory} has no config.json; expected a saved transformers model")
    if any(directory.glob("*.safetensors")):
        return
    pickled = [file.name for ending in PICKLES for file in directory.glob(f"*{ending}")]
    if not pickled:
        raise InputError(
            "model.path", f"{directory} has no weights; expected *.safetensors beside config.json"
        )
    raise InputError(
        "model.path",
        f"{directory} has pickled weights only ({min(pickled)}), which can run code when loaded; {CONVERT}",
    )


def load_tokenizer(settings: ModelSettings, say: Callable[[str], None] = print) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token pads with its end-of-text token.

    Raises:
        InputError: if there is none, or it has neither token.
    """
    path = resolve_path(settings, say)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:
        raise InputError(
            "model.path", f"no tokenizer could be loaded from {path}: {_reason(error)}"
        ) from error
    if not tokenizer.vocab_size:  # transformers makes an empty one where it finds no files
        raise InputError(
            "model.path",
            f"{path} has no tokenizer; expected its files beside the weights, such as those of its base:"
            f" AutoTokenizer.from_pretrained(BASE).save_pretrained('{path}')",
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError("model.path", f"the tokenizer of {path} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    settings: ModelSettings,
    labels: Sequence[str],
    pad_token_id: int,
    say: Callable[[str], None] = print,
) -> BaseModel:
    """Load the base weights.

    The classification head never comes from the checkpoint: each trial initializes its own from its seed.

    Arguments:
        settings: which model.
        labels: label names in the order of their indices.
        pad_token_id: the tokenizer's, written into the configuration.
        say: is told of steps that take long.

    Raises:
        InputError: if the model cannot be loaded, with the reason.
    """
    path = resolve_path(settings, say)
    if find_adapter_config_file(path, revision=settings.revision) is not None:
        # It would be loaded onto a base that it names itself, and its own weights may be pickled.
        raise InputError("model.path", f"{path} is an adapter; expected a whole model, such as its base")
    common = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(path, **common)
        _set_labels(config, labels, pad_token_id)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=dtype_of(settings),
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **common,
        )
    except Exception as error:
        raise InputError(
            "model.path",
            f"{path} could not be loaded: {_reason(error)}; expected a reachable hub id, or a "
            "directory, of an architecture with a sequence classification head and safetensors weights",
        ) from error
    _refuse_unfit(model, found, path)
    prefix = f"{model.base_model_prefix}."
    weights = {
        name: _to_numpy(tensor) for name, tensor in model.state_dict().items() if name.startswith(prefix)
    }
    return BaseModel(settings, path, model.config.to_dict(), weights, _fingerprint(weights))


def _refuse_unfit(model: PreTrainedModel, found: Mapping[str, Any], path: str) -> None:
    """Refuse a model that lacks weights of its base, or whose numbers depend on a text's neighbours.

    Arguments:
        model: as it was loaded.
        found: what ``from_pretrained`` tells of its loading.
        path: of the model.
    """
    prefix = f"{model.base_model_prefix}."
    # Of another shape are the weights of another head, or of a configuration that is not this model's.
    lost = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if missing := sorted(name for name in lost if name.startswith(prefix)):
        raise InputError(
            "model.path",
            f"{path} has no weights that fit {', '.join(missing[:3])}{', ...' if missing[3:] else ''}; "
            "expected all of the base model's, since others would start at random and be in no adapter",
        )
    if model.config.model_type in READS_PADDING:
        raise InputError(
            "model.path",
            f"{path} is of the architecture {model.config.model_type}, whose head reads the last token, even"
            " if that is padding; expected one whose numbers do not depend on a text's neighbours",
        )


def _set_labels(config: PreTrainedConfig, labels: Sequence[str], pad_token_id: int) -> None:
    """Have a configuration classify texts that are padded with this token."""
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.pad_token_id = pad_token_id
    config._attn_implementation = None  # it may name compiled code to be fetched from the hub


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.contiguous().view(torch.uint16).numpy())
    return np.asarray(tensor.contiguous().numpy())


def _fingerprint(weights: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {weights[name].shape}".encode())
        digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "it needs Python code that comes with it; set model.trust_remote_code: true if you trust it"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
