"""A model that is evaluated computes what it computes otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_low_rank_layers import adapted_model, slow_down
from torch import nn

from trainables import inference
from trainables.base_model import build_model
from trainables.pretrained import load_base
from trainables.settings import ModelSettings


def model_of(kind: str, directory: Path) -> nn.Module:
    """Return a model without adapters, or with some that do something."""
    if kind == "full":
        return build_model(load_base(ModelSettings(path=str(directory)), ["no", "yes"], 0), seed=1)
    return adapted_model(kind, 0.3, directory)


def texts(model: nn.Module, examples: int) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randint(1, model.config.vocab_size, (examples, 16))


@pytest.mark.parametrize("kind", ["full", "lora", "dora", "qlora"])
@pytest.mark.parametrize("examples", [1, 60])
@pytest.mark.parametrize("kept_bytes", [0, inference.KEPT_BYTES])
@pytest.mark.parametrize("has_onednn", {False, inference.HAS_ONEDNN})
def test_outputs_are_those_of_peft(
    kind: str,
    examples: int,
    kept_bytes: int,
    has_onednn: bool,
    architecture: str,
    model_directories: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of few tokens and of more than a layer has inputs; no layer is left changed."""
    monkeypatch.setattr(inference, "KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(inference, "HAS_ONEDNN", has_onednn)
    model = model_of(kind, model_directories[architecture]).eval()
    ids = texts(model, examples)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with inference.inference(model):
        found = [model(input_ids=ids).logits for _ in range(2)]
    slow_down(model)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    torch.testing.assert_close(found, [expected] * 2, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.skipif(not inference.HAS_ONEDNN, reason="PyTorch has no oneDNN for this processor")
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_gelu_is_computed_within_the_product(kind: str, model_directories: dict[str, Path]) -> None:
    model = model_of(kind, model_directories["gpt2"]).eval()
    ids = texts(model, 60)
    with torch.profiler.profile() as seen, inference.inference(model):
        model(input_ids=ids)
    names = {event.name for event in seen.events()}
    assert "mkldnn::_linear_pointwise" in names
    assert "aten::gelu" not in names


def test_weights_are_made_once_for_an_evaluation_and_anew_for_the_next(
    model_directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    merged_weight, made = inference.merged_weight, []
    monkeypatch.setattr(inference, "merged_weight", lambda layer: made.append(layer) or merged_weight(layer))
    model = model_of("lora", model_directories["gpt2"]).eval()
    ids, seen = texts(model, 60), []
    for _ in range(2):
        with inference.inference(model):
            seen += [model(input_ids=ids).logits for _ in range(3)]
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data += 0.5
    assert len(made) == 2 * len(set(made)) > 2
    assert torch.equal(seen[0], seen[2])
    assert not torch.allclose(seen[0], seen[3])


class Doubled(nn.Linear):
    """A layer that does more than its base class, as code that came with a model may."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_a_layer_of_another_class_computes_what_it_does(model_directories: dict[str, Path]) -> None:
    model = model_of("full", model_directories["gpt2"]).eval()
    torch.manual_seed(3)
    model.score = Doubled(model.score.in_features, model.score.out_features)
    ids = texts(model, 60)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    with inference.inference(model):
        found = model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_multiplication_at_other_precisions(precision: str, model_directories: dict[str, Path]) -> None:
    """What processors with bfloat16 make of it differs in the third digit."""
    model = model_of("lora", model_directories["gpt2"]).eval()
    ids = texts(model, 60)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with inference.inference(model):
            found = model(input_ids=ids).logits
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_bfloat16_is_left_to_autocast(model_directories: dict[str, Path]) -> None:
    """A sum of a weight and its update would lose the update there."""
    model = model_of("lora", model_directories["gpt2"]).eval()
    ids = texts(model, 60)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = model(input_ids=ids).logits
        with inference.inference(model):
            found = model(input_ids=ids).logits
    assert torch.equal(found, expected)


def test_a_model_is_left_as_it_was_also_after_an_error(model_directories: dict[str, Path]) -> None:
    model = model_of("full", model_directories["gpt2"])
    with pytest.raises(IndexError), inference.inference(model):
        model(input_ids=torch.full((2, 3), 10**6))
    assert not any("forward" in vars(module) for module in model.modules())
    assert model(input_ids=texts(model, 2)).logits.requires_grad
