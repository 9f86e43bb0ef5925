"""The probe of a trial's memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer

from orchestrator.cluster import Cluster
from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment
from orchestrator.nodes import Node
from orchestrator.prepare import Prepared, prepare
from orchestrator.probing import fit_resources, heaviest_trial
from tests.conftest import WORDS, data_settings
from trainables.data import TokenizedSplit
from trainables.measure import peak_memory, shared_memory
from trainables.probe import longest_examples, probe


@pytest.fixture(scope="module")
def experiment(model_directories: dict[str, Path], data_files: dict[str, Path]) -> Experiment:
    searched = {"rank": [2, 8, 4], "batch_size": [4, 8], "target_modules": [["c_fc"], ["c_fc", "c_attn"]]}
    searched["micro_batch_size"] = [2, None, 4]
    return Experiment.model_validate(
        {
            "model": {"path": str(model_directories["gpt2"])},
            "data": data_settings(data_files),
            "methods": {"full": {"batch_size": {"low": 2, "high": 16}}, "lora": searched},
        }
    )


@pytest.fixture(scope="module")
def prepared(experiment: Experiment) -> Prepared:
    return prepare(experiment, print)


@pytest.mark.parametrize(("model", "asks"), [("bert", True), ("gpt2", False)])
def test_texts_of_pairs_are_told_apart_for_models_that_ask(
    model: str, asks: bool, model_directories: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"good film\tbad plot {row}\t{row % 2}\n" for row in range(40)))
    data = {"path": None, "columns": ["one", "other", "label"], "text": "one", "text_pair": "other"}
    data |= {"validation": None, "test": None}
    directory = shutil.copytree(model_directories[model], tmp_path / model)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(directory)
    values = {"model": {"path": str(directory)}, "data": {**data, "train": str(file)}}
    found = prepare(Experiment.model_validate({**values, "methods": {"head": {}}}), print).data.train.segments
    assert (None if found is None else found[:7].tolist()) == ([0, 0, 0, 0, 1, 1, 1] if asks else None)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 40), st.booleans())
def test_the_longest_examples_are_taken_whole(lengths: list[int], count: int, has_segments: bool) -> None:
    tokens = np.arange(sum(lengths), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(len(lengths))
    segments = (tokens % 2).astype(np.int8) if has_segments else None
    found = longest_examples(TokenizedSplit(tokens, offsets, ids % 2, ids, segments), count)
    assert (found.segments is not None) == has_segments
    assert segments is None or (found.segments == segments[found.tokens]).all()
    assert sorted(found.lengths) == sorted(sorted(lengths)[-count:])
    for place, example in enumerate(found.example_ids):
        mine = found.tokens[found.offsets[place] : found.offsets[place + 1]]
        assert list(mine) == list(tokens[offsets[example] : offsets[example + 1]])
        assert found.labels[place] == example % 2


def test_gpus_of_several_types_are_refused_before_anything_is_tried(
    experiment: Experiment, prepared: Prepared
) -> None:
    nodes = (Node("head", 4, 0), Node("one", 8, 1, gpu_type="A100"), Node("other", 8, 1, gpu_type="T4"))
    expected = "resources: auto: expected GPUs of one type, got A100, T4; set resources.gpus_per_trial"
    with pytest.raises(ExperimentError, match=expected):
        fit_resources(experiment, prepared, Cluster(nodes, is_joined=True, dashboard=None), print)


def test_the_hungriest_trial_has_the_largest_of_everything(
    experiment: Experiment, prepared: Prepared
) -> None:
    lora = heaviest_trial(experiment, prepared.base, "lora")
    assert lora.settings.model_dump()["rank"] == 8
    assert lora.settings.model_dump()["target_modules"] == ("c_fc", "c_attn")
    assert lora.training.batch_size == 8
    assert lora.training.micro_batch_size is None, "the whole batch at once takes the most"
    assert heaviest_trial(experiment, prepared.base, "full").training.batch_size == 16


def test_a_probe_on_a_cpu_measures_this_process_less_what_is_shared(
    experiment: Experiment, prepared: Prepared
) -> None:
    spec = heaviest_trial(experiment, prepared.base, "full")
    peak = probe(spec, prepared.data, prepared.test, prepared.base)
    high, _ = peak_memory(torch.device("cpu"))
    assert high is not None
    assert peak.process_bytes is not None
    assert abs(high - shared_memory() - peak.process_bytes) < 50e6
    assert (peak.gpu_bytes, peak.gpu_total_bytes) == (0, 0)


@pytest.mark.cuda
def test_a_probe_on_a_gpu_counts_what_is_reserved_and_the_context(
    experiment: Experiment, prepared: Prepared
) -> None:
    spec = heaviest_trial(experiment, prepared.base, "full")
    peak = probe(spec, prepared.data, prepared.test, prepared.base, torch.device("cuda"))
    weights = sum(weight.nbytes for weight in prepared.base.weights.values())
    # Weights, gradients and AdamW's two moments, and a context of at least 50 MB.
    assert peak.gpu_bytes > 4 * weights + 50e6
    assert peak.gpu_bytes >= torch.cuda.max_memory_allocated() + 50e6
    assert peak.gpu_total_bytes == torch.cuda.get_device_properties(0).total_memory
