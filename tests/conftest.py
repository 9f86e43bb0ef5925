"""What several test modules need: small real models and data made on the spot, and the shared ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from filelock import FileLock
from s3_server import Proxy, s3_server
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

# No deadline by default: how long a test takes depends on what else the machine does.
hypothesis.settings.register_profile("usual", max_examples=50, deadline=None)
hypothesis.settings.register_profile("soak", max_examples=3000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("usual")

# By default Ray's workers have a niceness of 15, with which they would hardly progress beside other tests.
os.environ.setdefault("RAY_worker_niceness", "0")

# Tiny models: processes that share the cores would mostly wait for their threads, which keeps the cores busy.
torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"
WORDS = [
    "<pad>",
    "<unk>",
    "good",
    "bad",
    "fine",
    "poor",
    "film",
    "plot",
    "the",
    "a",
    "was",
    "and",
    "very",
    "not",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def make_model(architecture: str) -> PreTrainedModel:
    """Make a tiny model with random weights, the same every time."""
    torch.manual_seed(0)
    if architecture == "gpt2":
        config = GPT2Config(
            vocab_size=len(WORDS),
            n_positions=64,
            n_embd=64,
            n_layer=2,
            n_head=2,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
        return GPT2LMHeadModel(config)
    if architecture == "bert":
        return BertForPreTraining(
            BertConfig(
                vocab_size=len(WORDS),
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=128,
                max_position_embeddings=64,
                pad_token_id=0,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
        )
    )


def example_rows(count: int) -> list[tuple[str, int]]:
    """Return sentences labeled 1 if they contain a good word, and 0 if a bad one."""
    good, bad, rest = ("good", "fine"), ("bad", "poor"), ("the", "a", "film", "plot", "was", "very")
    rows = []
    for i in range(count):
        word = (good if i % 2 else bad)[i // 2 % 2]
        filler = [rest[(i * 7 + j * (i % 5 + 1)) % len(rest)] for j in range(2 + i % 6)]
        rows.append((" ".join([*filler, word, *filler[: i % 3]]), i % 2))
    return rows


def data_settings(files: dict[str, Path]) -> dict[str, Any]:
    """Return an experiment's data settings for files of sentences and labels."""
    splits = {name: str(file) for name, file in files.items()}
    return {"path": None, "columns": ["sentence", "label"], **splits}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``cuda`` where there is no GPU."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture
def much_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let tests that need gigabytes of memory take turns, also across processes."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "much_memory.lock"):
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each kind of device that trials train on."""
    return torch.device(request.param)


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def architecture(request: pytest.FixtureRequest) -> str:
    """Each of two architectures: Conv1D layers, and Linear ones."""
    return str(request.param)


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny saved model and tokenizer of each architecture."""
    directories = {}
    for architecture in ("gpt2", "llama", "bert"):
        directory = tmp_path_factory.mktemp(architecture)
        make_model(architecture).save_pretrained(directory)
        make_tokenizer().save_pretrained(directory)
        directories[architecture] = directory
    return directories


@pytest.fixture(scope="session")
def data_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files without a header: train, validation and test."""
    directory = tmp_path_factory.mktemp("data")
    files = {}
    for name, count in (("train", 64), ("validation", 24), ("test", 24)):
        files[name] = directory / f"{name}.tsv"
        files[name].write_text("".join(f"{text}\t{label}\n" for text, label in example_rows(count)))
    return files


@pytest.fixture(scope="session")
def shared() -> Path:
    """The directory of real data and small pretrained models beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real data and pretrained models in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of an S3 server with a bucket called ``bucket``."""
    with s3_server() as port:
        yield port


@pytest.fixture
def s3(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A switchable proxy before the S3 server, which this process and those it starts use."""
    proxy = Proxy(s3_port)
    for name, value in proxy.environment.items():
        monkeypatch.setenv(name, value)
    yield proxy
    proxy.close()
