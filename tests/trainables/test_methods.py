"""One conformance suite over every method, two architectures, and CPU and GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from decoders import no_masks
from peft import PeftModel
from prepared import prepare
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig

from results.evaluation import Checkpoint, Evaluation
from trainables import training
from trainables.base_model import BaseModel, build_model
from trainables.batches import Batch, batches, training_batches
from trainables.data import TokenizedData
from trainables.methods import METHODS
from trainables.parallel import ALONE
from trainables.quantization import quantize, with_quantized
from trainables.scoring import Scores, evaluate
from trainables.settings import TrainingSettings
from trainables.setup import TrialSpec, set_up, wrap_base
from trainables.training import RandomStream, Trained, forward, make_optimizer, train_step
from trainables.trial import TrialInputs, run_trial

CPU = torch.device("cpu")


def nf4(dtype: str = "float32") -> BitsAndBytesConfig:
    """Return what QLoRA's authors load a base with, to compute in ``dtype``."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[
            "score",
            "classifier",
        ],  # heads, which an encoder's would else be quantized, too
    )


@pytest.fixture(params=sorted(METHODS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bfloat16_base(
    architecture: str, model_directories: dict[str, Path], data_files: dict[str, Path]
) -> BaseModel:
    return prepare(model_directories[architecture], data_files, "bfloat16").base


def make_spec(kind: str, seed: int = 1, epochs: int = 2, learning_rate: float = 1e-2) -> TrialSpec:
    training = TrainingSettings(epochs=epochs, learning_rate=learning_rate, batch_size=8)
    return TrialSpec("t", kind, kind, seed, METHODS[kind].settings(), training)


def first_batch(data: TokenizedData, device: torch.device = CPU) -> Batch:
    return next(training_batches(data.train, 8, data.pad_token_id, seed=0)).to(device)


def logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def gradients(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """Gradients of one step in train mode, from a fixed random state."""
    model.zero_grad(set_to_none=True)
    with RandomStream(0, batch.labels.device).active():
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        nn.functional.cross_entropy(output.logits, batch.labels).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def count_saved() -> Iterator[dict[int, int]]:
    """Count the bytes that forward passes in the block keep for gradients, by address."""
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield saved


def curve(points: list[Evaluation]) -> list[tuple[float, float, float]]:
    return [(p.train_loss, p.validation_loss, p.validation_accuracy) for p in points]


def test_output_at_step_0_is_the_base_models(
    base: BaseModel, data: TokenizedData, kind: str, device: torch.device
) -> None:
    reference = build_model(base, seed=1)
    if METHODS[kind].quantized:
        quantize(reference, {})
    reference = reference.to(device)
    wrapped = wrap_base(base, kind, METHODS[kind].settings(), seed=1).to(device)
    batch = first_batch(data, device)
    torch.testing.assert_close(
        logits(wrapped.eval(), batch), logits(reference.eval(), batch), rtol=1e-5, atol=1e-5
    )


def test_only_declared_parameters_get_gradients_also_after_an_evaluation(
    base: BaseModel, data: TokenizedData, kind: str, device: torch.device
) -> None:
    model = wrap_base(base, kind, METHODS[kind].settings(), seed=1).to(device).train()
    declared = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    batch = first_batch(data, device)
    before = gradients(model, batch)
    evaluate(model, batches(data.validation, 8, data.pad_token_id), data.validation.labels, device)
    after = gradients(model, batch)
    assert set(before) == set(after) == declared
    exact = {"rtol": 0, "atol": 0} if device == CPU else {"rtol": 1e-4, "atol": 1e-6}
    for name in declared:
        torch.testing.assert_close(after[name], before[name], **exact)
    assert any(gradient.abs().sum() > 0 for gradient in before.values())


def test_trained_parameters_are_those_of_the_kind(base: BaseModel, kind: str) -> None:
    model = wrap_base(base, kind, METHODS[kind].settings(), seed=1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if kind == "full":
        assert not frozen
    elif kind == "head":
        assert trained == {"score.weight"}
    else:
        assert all("lora_" in name or "score" in name for name in trained)
        assert any("lora_" in name for name in trained)


def test_loss_falls_on_a_fixed_batch(
    base: BaseModel, data: TokenizedData, kind: str, device: torch.device
) -> None:
    spec, batch = make_spec(kind), first_batch(data, device)
    trained, _ = set_up(spec, base, 1000, device, ALONE, data.train.longest)
    losses = [train_step(trained, batch, spec.training, torch.float32).item() for _ in range(120)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.005


def test_same_seed_same_numbers_whatever_runs_before_or_between(
    base: BaseModel, data: TokenizedData, kind: str, device: torch.device
) -> None:
    alone = list(run_trial(TrialInputs(make_spec(kind), data, base, device=device)))
    torch.manual_seed(99)
    neighbour = run_trial(TrialInputs(make_spec(kind, seed=7), data, base, device=device))
    disturbed = []
    for point in run_trial(TrialInputs(make_spec(kind), data, base, device=device)):
        disturbed.append(point)
        next(neighbour)
        torch.rand(3, device=device)
    assert alone[-1].device.partition(":")[0] == device.type
    if device == CPU:
        assert curve(disturbed) == curve(alone)
    else:  # CUDA's sums are taken in any order
        losses = [[(p.train_loss, p.validation_loss) for p in points] for points in (disturbed, alone)]
        np.testing.assert_allclose(*losses, rtol=1e-3)


def test_what_was_trained_is_gone_without_garbage_collection(
    base: BaseModel, data: TokenizedData, kind: str
) -> None:
    """Else it would take memory beside the next trial of the same process."""
    gc.collect()
    gc.disable()
    try:
        model, settings = wrap_base(base, kind, METHODS[kind].settings(), seed=1), make_spec(kind).training
        optimizer, schedule = make_optimizer(model, settings, total_steps=2)
        trained = Trained(
            model, model, optimizer, schedule, RandomStream(0, CPU), no_masks(), None, CPU, ALONE
        )
        train_step(trained, first_batch(data), settings, torch.float32)
        parameters = [weakref.ref(parameter) for parameter in model.parameters()]
        del model, optimizer, schedule, trained
        assert not [parameter for parameter in parameters if parameter() is not None]
    finally:
        gc.enable()


def test_another_seed_gives_other_numbers(base: BaseModel, data: TokenizedData, kind: str) -> None:
    one, other = (list(run_trial(TrialInputs(make_spec(kind, seed), data, base))) for seed in (1, 2))
    assert curve(one) != curve(other)


def test_training_leaves_the_shared_weights_alone(base: BaseModel, data: TokenizedData, kind: str) -> None:
    before = {name: weights.copy() for name, weights in base.weights.items()}
    list(run_trial(TrialInputs(make_spec(kind, epochs=1), data, base)))
    assert all(np.array_equal(before[name], base.weights[name]) for name in before)


def test_checkpoint_opens_with_the_plain_libraries_and_scores_the_same(
    base: BaseModel, data: TokenizedData, kind: str, tmp_path: Path, device: torch.device
) -> None:
    points = list(run_trial(TrialInputs(make_spec(kind), data, base, tmp_path / "checkpoint", device=device)))
    best = next(point for point in reversed(points) if point.is_best)
    assert best.checkpoint is not None
    assert best.checkpoint.kind == ("full" if kind in ("full", "head") else "adapter")
    files = [file for file in (tmp_path / "checkpoint").rglob("*") if file.is_file()]
    assert best.checkpoint.bytes == sum(file.stat().st_size for file in files)
    scores = score_checkpoint(best.checkpoint, METHODS[kind].quantized, base, data, device)
    if device == CPU:
        assert scores.accuracy == best.validation_accuracy
        assert scores.macro_f1 == best.validation_macro_f1
    else:  # where a user's base is quantized by another kernel
        assert scores.loss == pytest.approx(best.validation_loss, rel=1e-2)


def test_a_bfloat16_base_trains_in_float32_and_its_checkpoint_scores_the_same(
    bfloat16_base: BaseModel, data: TokenizedData, kind: str, tmp_path: Path, device: torch.device
) -> None:
    model = wrap_base(bfloat16_base, kind, METHODS[kind].settings(), seed=1)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    assert frozen <= {torch.bfloat16, torch.uint8}, "float32 copies of frozen weights waste memory"
    directory = tmp_path / "checkpoint"
    points = list(
        run_trial(TrialInputs(make_spec(kind, epochs=8), data, bfloat16_base, directory, device=device))
    )
    assert points[-1].train_loss < points[0].train_loss
    best = next(point for point in reversed(points) if point.is_best)
    assert best.checkpoint is not None
    scores = score_checkpoint(
        best.checkpoint, METHODS[kind].quantized, bfloat16_base, data, device, same_kernel=True
    )
    if device == CPU:
        assert scores.accuracy == best.validation_accuracy
    else:
        assert scores.loss == pytest.approx(best.validation_loss, rel=2e-2)


def test_an_encoder_whose_head_has_dropout_trains_and_its_checkpoint_scores_the_same(
    model_directories: dict[str, Path], data_files: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    data, _, encoder = prepare(model_directories["bert"], data_files)
    points = list(run_trial(TrialInputs(make_spec(kind, epochs=1), data, encoder, tmp_path / "checkpoint")))
    best = next(point for point in reversed(points) if point.is_best)
    assert best.checkpoint is not None
    scores = score_checkpoint(best.checkpoint, METHODS[kind].quantized, encoder, data, same_kernel=True)
    assert scores.loss == pytest.approx(best.validation_loss, rel=1e-5)


def score_checkpoint(
    checkpoint: Checkpoint,
    quantized: bool,
    base: BaseModel,
    data: TokenizedData,
    device: torch.device = CPU,
    same_kernel: bool = False,
) -> Scores:
    """Open a checkpoint as a user does, with the plain libraries, and evaluate it.

    With ``same_kernel``, bitsandbytes is kept from evaluating 4-bit layers by a kernel of its own, in
    bfloat16, where the CPU has one: its loss differs in the fifth digit.
    """
    if checkpoint.kind == "full":
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint.path).to(device)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            base.path,
            dtype=base.dtype,
            config=AutoConfig.from_pretrained(checkpoint.path),
            quantization_config=nf4(base.settings.dtype) if quantized else None,
            device_map={"": device.type},
        )
        model = PeftModel.from_pretrained(model, checkpoint.path)
        for layer in model.modules():
            if isinstance(layer, Linear4bit) and same_kernel:
                layer.support_avx512bf16_for_cpu = False
    assert model.config.id2label == dict(enumerate(data.labels))
    split = batches(data.validation, 64, data.pad_token_id)
    return evaluate(model, split, data.validation.labels, device, base.dtype)


@pytest.mark.parametrize("shared", [False, True])
def test_quantization_gives_the_weights_that_from_pretrained_gives(base: BaseModel, shared: bool) -> None:
    ours = build_model(base, seed=0)
    known = with_quantized(base).quantized if shared else {}
    quantize(ours, known)
    theirs = AutoModelForSequenceClassification.from_pretrained(
        base.path, quantization_config=nf4(), device_map={"": "cpu"}
    )
    expected = {name: p for name, p in theirs.named_parameters() if hasattr(p, "quant_state")}
    found = {name: p for name, p in ours.named_parameters() if hasattr(p, "quant_state")}
    assert set(found) == set(expected)
    for layer, arrays in known.items():  # no copy of what is shared
        assert ours.base_model.get_submodule(layer).weight.data_ptr() == arrays["weight"].ctypes.data
    for name in expected:
        assert torch.equal(found[name].data, expected[name].data), name
        assert torch.equal(found[name].quant_state.absmax, expected[name].quant_state.absmax), name


def test_activations_computed_again_give_the_same_curve_and_are_not_kept(
    base: BaseModel, data: TokenizedData, kind: str, device: torch.device
) -> None:
    """A model of two blocks and dropout: what the first block did is computed again."""
    kept, spec = {}, make_spec(kind)
    for again in (False, True):
        spec = replace(spec, training=spec.training.model_copy(update={"gradient_checkpointing": again}))
        points = curve(list(run_trial(TrialInputs(spec, data, base, device=device))))
        trained, _ = set_up(spec, base, 10, device, ALONE, data.train.longest)
        with count_saved() as saved, trained.stream.active():
            forward(trained.model, first_batch(data, device), torch.float32)
        kept[again] = points, sum(saved.values())
    exact = {"rel": 0, "abs": 0} if device == CPU else {"rel": 1e-3}
    for found, expected in zip(kept[True][0], kept[False][0], strict=True):
        assert found == pytest.approx(expected, **exact)
    ratio = kept[True][1] / kept[False][1]
    assert ratio == 1 if kind == "head" else ratio < 0.7


def test_batches_that_go_through_in_parts_give_the_same_curve(
    base: BaseModel, data: TokenizedData, kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is dropped is the same; of GPT-2 hidden states and weights of attention."""
    most: list[int] = []

    def watch(model: nn.Module, batch: Batch, dtype: torch.dtype) -> torch.Tensor:
        if model.training:
            most.append(len(batch.labels))
        return forward(model, batch, dtype)

    monkeypatch.setattr(training, "forward", watch)
    curves, spec = [], make_spec(kind)
    for micro, expected in ((None, {8}), (3, {2, 3})):
        most.clear()
        spec = replace(spec, training=spec.training.model_copy(update={"micro_batch_size": micro}))
        curves.append(curve(list(run_trial(TrialInputs(spec, data, base, device=device)))))
        assert set(most) == expected
    for found, wanted in zip(*curves, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4 if device == CPU else 1e-3)


def test_float32_matrices_are_multiplied_as_the_trial_says(
    base: BaseModel, data: TokenizedData, device: torch.device
) -> None:
    """Each trial says it anew, since a worker trains one after another."""
    spec = make_spec("full")

    def train(precision: str) -> list[float]:
        settings = base.settings.model_copy(update={"float32_matmul": precision})
        points = run_trial(TrialInputs(spec, data, replace(base, settings=settings), device=device))
        return [point.validation_loss for point in points]

    highest, medium, again = train("highest"), train("medium"), train("highest")
    assert again == highest
    assert medium == pytest.approx(highest, rel=0.02)
    if "amx_bf16" in Path("/proc/cpuinfo").read_text():
        assert medium != highest
