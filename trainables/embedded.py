"""The built-in model: a small GPT-2, pre-trained at first use on text the program generates."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs
import torch
from filelock import FileLock
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from trainables.embedded_text import LABELS, embedded_splits, pretraining_documents

__all__ = ["LABELS", "build_embedded_model", "embedded_model_directory", "embedded_splits"]

CACHE_VARIABLE = "FINETUNE_COMPARISON_CACHE"
"""Environment variable that names another cache directory."""

DOCUMENTS = 6000
STEPS = 800
CONTEXT = 32
BATCH = 32
PAD, UNKNOWN = "<pad>", "<unk>"


def cache_directory() -> Path:
    """Return the directory of the program's files that are nobody's results."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("finetune-comparison"))


def embedded_model_directory(say: Callable[[str], None] = print) -> Path:
    """Return the directory of the built-in model, building it if this version of it is not cached.

    Arguments:
        say: is told that the model is being built, and how long it took.
    """
    cache = cache_directory()
    directory = cache / f"embedded-{_recipe()}"
    if directory.is_dir():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if directory.is_dir():
            return directory
        say(f"building the built-in model, once: pre-training a small GPT-2 for {STEPS} steps")
        started = time.monotonic()
        temporary = directory.with_name(f".{directory.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        loss = build_embedded_model(temporary, DOCUMENTS, STEPS)
        temporary.rename(directory)
        seconds = time.monotonic() - started
        say(f"  done in {seconds:.0f} s, loss {loss:.2f} nats per token, cached in {directory}")
    return directory


def build_embedded_model(directory: Path, documents: int, steps: int) -> float:
    """Pre-train a causal language model on generated text and save it with its tokenizer.

    Returns:
        The mean loss over the last tenth of the steps, in nats per token.
    """
    texts = pretraining_documents(documents)
    tokenizer = _tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_positions=CONTEXT,
                n_embd=128,
                n_layer=3,
                n_head=4,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        stream = np.array([i for ids in tokenizer(texts)["input_ids"] for i in ids], dtype=np.int64)
        loss = _pretrain(model, stream, steps)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return loss


def _pretrain(model: GPT2LMHeadModel, stream: np.ndarray, steps: int) -> float:
    generator = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    losses = []
    model.train()
    for _ in range(steps):
        starts = generator.integers(0, len(stream) - CONTEXT, BATCH)
        batch = torch.from_numpy(stream[starts[:, None] + np.arange(CONTEXT)])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return sum(losses[-math.ceil(steps / 10) :]) / math.ceil(steps / 10)


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word of the pre-training text."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: index for index, word in enumerate((PAD, UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, model_max_length=CONTEXT
    )


def _recipe() -> str:
    """Hash everything that decides the weights, so that a changed recipe builds a new model."""
    here = Path(__file__).parent
    sources = b"".join((here / name).read_bytes() for name in ("embedded.py", "embedded_text.py"))
    return hashlib.sha256(sources + torch.__version__.encode()).hexdigest()[:12]
