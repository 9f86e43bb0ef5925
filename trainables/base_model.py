"""The base model: loaded once, shared as arrays, rebuilt per trial."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D
from transformers.utils.peft_utils import find_adapter_config_file

from trainables.attention import let_draw_ahead
from trainables.errors import InputError
from trainables.last_tokens import last_block, narrow_last_block
from trainables.settings import ModelSettings

LINEAR_LAYERS = (nn.Linear, Conv1D)
"""Layers that adapters attach to and that quantization replaces; GPT-2's Conv1D is a transposed Linear."""

READS_PADDING = ("xlnet",)
"""Architectures, by ``model_type``, whose head reads the last token of a batch's longest text."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of files in which PyTorch pickles weights."""

CONVERT = (
    "expected *.safetensors. If you trust their author, convert them once: "
    "python -c \"import transformers as t; t.AutoModel.from_pretrained('OLD').save_pretrained('NEW'); "
    "t.AutoTokenizer.from_pretrained('OLD').save_pretrained('NEW')\""
)


@dataclass(frozen=True)
class BaseModel:
    """Base weights as plain arrays, so that the object store shares them without a copy."""

    settings: ModelSettings
    path: str  # what from_pretrained takes: hub id or absolute directory (the cache's for 'embedded')
    config: dict[str, Any]  # AutoConfig's dict, with num_labels, id2label, label2id and pad_token_id set
    weights: Mapping[str, NDArray[Any]]  # by parameter name, without the head; bfloat16 as uint16
    fingerprint: str  # sha256 of names, shapes and bytes of the weights
    # 4-bit weights by linear layer, see trainables.quantization; those that are missing are made when needed
    quantized: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of frozen weights and computation."""
        return _dtype(self.settings)


def resolve_path(settings: ModelSettings, report: Callable[[str], None] = print) -> str:
    """Return what ``from_pretrained`` takes: the cache's directory, an absolute directory or a hub id.

    Raises:
        InputError: if a path that looks like a directory has no model in it.
    """
    if settings.path == "embedded":
        from trainables.embedded import embedded_model_directory

        return str(embedded_model_directory(report))
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


def load_tokenizer(settings: ModelSettings, report: Callable[[str], None] = print) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token pads with its end-of-text token.

    Raises:
        InputError: if there is none, or it has neither token.
    """
    path = resolve_path(settings, report)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except Exception as error:
        raise InputError(
            "model.path", f"no tokenizer could be loaded from {path}: {_reason(error)}"
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError("model.path", f"the tokenizer of {path} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    settings: ModelSettings,
    labels: Sequence[str],
    pad_token_id: int,
    report: Callable[[str], None] = print,
) -> BaseModel:
    """Load the base weights.

    The classification head never comes from the checkpoint: each trial initializes its own from its seed.

    Arguments:
        settings: which model.
        labels: label names in the order of their indices.
        pad_token_id: the tokenizer's, written into the configuration.
        report: is told of steps that take long.

    Raises:
        InputError: if the model cannot be loaded, with the reason.
    """
    path = resolve_path(settings, report)
    if find_adapter_config_file(path, revision=settings.revision) is not None:
        # It would be loaded onto a base that it names itself, and its own weights may be pickled.
        raise InputError("model.path", f"{path} is an adapter; expected a whole model, such as its base")
    common = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(path, **common)
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.pad_token_id = pad_token_id
        config._attn_implementation = None  # it may name compiled code to be fetched from the hub
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=_dtype(settings),
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
    weights = {
        name: _to_numpy(tensor) for name, tensor in model.state_dict().items() if name.startswith(prefix)
    }
    return BaseModel(settings, path, model.config.to_dict(), weights, _fingerprint(weights))


def build_model(base: BaseModel, seed: int) -> PreTrainedModel:
    """Rebuild the model around views of the shared weights, with a head initialized from ``seed``.

    The views may be read-only; call :func:`own_trainable_parameters` before training.
    """
    config = _make_config(base)
    config.use_cache = False  # a decoder would copy keys and values for tokens that never come
    with no_init_weights():
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            config,
            dtype=base.dtype,
            trust_remote_code=base.settings.trust_remote_code,
        )
    model.load_state_dict({name: to_torch(w) for name, w in base.weights.items()}, strict=False, assign=True)
    model.tie_weights()  # one weight in several places, such as T5's embeddings, was loaded as several
    with torch.random.fork_rng(devices=[]):  # the head is initialized on the CPU
        torch.manual_seed(seed)
        for module in head_modules(model).values():
            for layer in module.modules():
                model._init_weights(layer)
    model.config.name_or_path = base.path
    model.name_or_path = base.path
    _fuse_activations(model)
    narrow_last_block(model)
    let_draw_ahead(model)
    return model


def _fuse_activations(model: nn.Module) -> None:
    """Compute GPT-2's GELU in one kernel; transformers composes it of eight."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep only each block's inputs, and recompute its activations when gradients need them, in place.

    Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, https://arxiv.org/abs/1604.06174.

    Raises:
        ValueError: if the architecture does not allow it.
    """
    if not any(parameter.requires_grad for parameter in model.base_model.parameters()):
        return  # a frozen base keeps nothing
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if (last := last_block(model)) is not None:
        last.gradient_checkpointing = False  # type: ignore[assignment]  # its activations are needed at once


def _make_config(base: BaseModel) -> PreTrainedConfig:
    if not base.settings.trust_remote_code:
        return AutoConfig.for_model(**base.config)
    # A class that comes with the model is found only through its path.
    known: PreTrainedConfig = AutoConfig.from_pretrained(
        base.path, revision=base.settings.revision, trust_remote_code=True
    )
    known.update({key: value for key, value in base.config.items() if key not in ("auto_map", "model_type")})
    return known


def head_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the top-level modules beside the base that have parameters: the classification head."""
    return {
        name: child
        for name, child in model.named_children()
        if name != model.base_model_prefix and next(child.parameters(), None) is not None
    }


def linear_layer_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the base's linear layers, such as ``c_attn`` or ``q_proj``, without the head's."""
    names = (
        name.rpartition(".")[2]
        for name, module in model.base_model.named_modules()
        if isinstance(module, LINEAR_LAYERS)
    )
    return tuple(dict.fromkeys(names))


def check_target_modules(model: PreTrainedModel, names: Sequence[str], key: str) -> None:
    """Check that adapters can attach to each of ``names``.

    Raises:
        InputError: naming the unknown ones and the known ones.
    """
    known = linear_layer_names(model)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(key, f"no layer is named {', '.join(unknown)}; this model has {', '.join(known)}")


def own_trainable_parameters(model: nn.Module) -> None:
    """Give each trainable parameter memory of its own, in place of a shared view, and 32 bits.

    AdamW's small updates are lost in bfloat16's 8 bits of precision (Micikevicius et al. 2018, section 3.1).
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32, copy=True)


def _dtype(settings: ModelSettings) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.contiguous().view(torch.uint16).numpy())
    return np.asarray(tensor.contiguous().numpy())


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """Return a view of an array, which may be read-only; uint16 is bfloat16."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


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
