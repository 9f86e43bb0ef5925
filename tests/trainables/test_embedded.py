"""The built-in model and data: really pre-trained, cached, and hard enough to tell methods apart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from trainables import embedded
from trainables.data import load_data, read_data
from trainables.embedded import CACHE_VARIABLE, embedded_model_directory, embedded_splits
from trainables.embedded_text import LABEL_NOISE, SEEN
from trainables.methods import METHODS
from trainables.pretrained import load_base, load_tokenizer
from trainables.settings import DataSettings, ModelSettings, TrainingSettings
from trainables.setup import TrialSpec
from trainables.trial import TrialInputs, run_trial


def words(texts: list[str]) -> set[str]:
    return {word for text in texts for word in text.split()}


def test_texts_are_the_same_every_time() -> None:
    assert embedded_splits() == embedded_splits()


def test_evaluation_has_words_that_training_has_not() -> None:
    splits = embedded_splits()
    for name in ("validation", "test"):
        assert len(words(splits[name][0]) - words(splits["train"][0])) >= 5


@pytest.mark.parametrize("construct", ["not", "but", "although", "very"])
def test_texts_hold_what_makes_sentiment_hard(construct: str) -> None:
    texts, _ = embedded_splits()["train"]
    assert sum(construct in text.split() for text in texts) > len(texts) / 50


def test_a_few_labels_are_wrong() -> None:
    texts, labels = embedded_splits()["train"]
    plain = [
        (polarity, label)
        for text, label in zip(texts, labels, strict=True)
        if not words([text]) & {"not", "never", "hardly", "far", "but", "still", "although", "even"}
        for polarity in (0, 1)
        if words([text]) & set(SEEN[polarity])
    ]
    wrong = sum(polarity != label for polarity, label in plain) / len(plain)
    assert len(plain) > 500
    assert abs(wrong - LABEL_NOISE) < 3 * (LABEL_NOISE / len(plain)) ** 0.5
    assert 0.45 < sum(labels) / len(labels) < 0.55


def test_several_at_once_build_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(embedded, "DOCUMENTS", 50)
    monkeypatch.setattr(embedded, "STEPS", 10)
    said: list[str] = []
    with ThreadPoolExecutor(3) as pool:
        directories = set(pool.map(lambda _: embedded_model_directory(said.append), range(3)))
    (directory,) = directories
    assert [line for line in said if "building" in line] == said[:1]
    assert AutoModelForCausalLM.from_pretrained(directory).config.n_layer == 3
    assert embedded_model_directory(said.append) == directory
    assert len(said) == 2


def test_a_build_that_was_cut_short_is_not_taken_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(embedded, "DOCUMENTS", 50)
    monkeypatch.setattr(embedded, "STEPS", 0)
    with pytest.raises(ZeroDivisionError):
        embedded_model_directory(lambda line: None)
    monkeypatch.setattr(embedded, "STEPS", 10)
    assert (embedded_model_directory(lambda line: None) / "model.safetensors").is_file()


def test_a_head_alone_is_clearly_worse_than_lora_and_nothing_is_perfect() -> None:
    raw = read_data(DataSettings(max_train_examples=1000), 0)
    data, _ = load_data(raw, load_tokenizer(ModelSettings()), 64)
    base = load_base(ModelSettings(), data.labels, data.pad_token_id)
    best = {}
    for kind, learning_rate in {"head": 3e-2, "lora": 4e-3, "full": 1e-3}.items():
        training = TrainingSettings(epochs=3, learning_rate=learning_rate)
        spec = TrialSpec("t", kind, kind, 1, METHODS[kind].settings(), training)
        best[kind] = max(point.validation_accuracy for point in run_trial(TrialInputs(spec, data, base)))
    assert 0.6 < best["head"] < best["lora"] - 0.05
    assert max(best.values()) < 1
