"""Two processes train a trial as one does: really two, over gloo, for each method, by DDP and by FSDP."""

from __future__ import annotations

import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from prepared import prepare
from safetensors.torch import load_file
from torch import multiprocessing

from results.evaluation import Evaluation
from trainables.methods import METHODS
from trainables.parallel import ALONE, Group, Parallelism
from trainables.settings import TrainingSettings
from trainables.setup import TrialSpec
from trainables.state import TrialState
from trainables.trial import TrialInputs, run_trial

# The last is the examples that go through the model at once; None is a rank's whole share.
CASES: list[tuple[str, Parallelism, int | None]] = [
    *((kind, "ddp", None) for kind in sorted(METHODS)),
    *((kind, "fsdp", None) for kind in sorted(METHODS) if not METHODS[kind].quantized),
    ("lora", "ddp", 2),
    ("full", "fsdp", 2),
]


def train(
    files: dict[str, Path], model: Path, kind: str, directory: Path, group: Group, micro: int | None = None
) -> list[Evaluation]:
    """Train a trial that is interrupted after its second evaluation and goes on from its state."""
    data, test, base = prepare(model, files)
    # 64 examples in batches of 9: shares of 5 and 4, and of 1 and nothing at an epoch's end.
    training = TrainingSettings(
        epochs=3,
        learning_rate=5e-3,
        batch_size=9,
        micro_batch_size=micro,
        gradient_checkpointing=micro is not None,
        evaluation_batch_size=10,
    )
    spec = TrialSpec("t", kind, kind, 1, METHODS[kind].settings(), training)
    state = TrialState()
    points = list(islice(run_trial(TrialInputs(spec, data, base, directory / "best", test, state, group)), 2))
    (directory / "state").mkdir(parents=True, exist_ok=True)
    state.save(directory / "state")
    if group.size > 1:
        dist.barrier()
    state = TrialState.read(directory / "state")
    return points + list(run_trial(TrialInputs(spec, data, base, directory / "best", test, state, group)))


def run_rank(rank: int, files: dict[str, Path], model: Path, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    for kind, parallelism, micro in CASES:
        own, group = directory / f"{kind}-{parallelism}-{micro}", Group(rank, 2, parallelism)
        points = train(files, model, kind, own, group, micro)
        (directory / f"{own.name}-{rank}").write_bytes(pickle.dumps(points))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(
    data_files: dict[str, Path],
    model_directories: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Everything two processes made."""
    directory = tmp_path_factory.mktemp("together")
    multiprocessing.spawn(run_rank, (data_files, model_directories["llama"], directory), nprocs=2)
    return directory


def column(points: list[Evaluation], name: str) -> list[Any]:
    return [getattr(point, name) for point in points]


@pytest.mark.parametrize(("kind", "parallelism", "micro"), CASES)
def test_two_processes_give_the_curve_of_one(
    together: Path,
    data_files: dict[str, Path],
    model_directories: dict[str, Path],
    tmp_path: Path,
    kind: str,
    parallelism: str,
    micro: int | None,
) -> None:
    alone = train(data_files, model_directories["llama"], kind, tmp_path, ALONE)  # Llama has no dropout
    case = f"{kind}-{parallelism}-{micro}"
    both = [pickle.loads((together / f"{case}-{rank}").read_bytes()) for rank in (0, 1)]
    for name in ("train_loss", "validation_loss", "validation_accuracy"):
        assert column(both[0], name) == pytest.approx(column(alone, name), rel=1e-4), name
        assert column(both[0], name) == column(both[1], name), name
    for name in ("step", "examples", "tokens", "trainable_parameters", "total_parameters", "model_bytes"):
        assert column(both[0], name) == column(alone, name), name
    assert both[0][-1].train_loss < both[0][0].train_loss
    # The test split is judged by both together, with the weights of the checkpoint that rank 0 wrote.
    assert np.allclose(both[0][-1].test.logits, alone[-1].test.logits, rtol=1e-3, atol=1e-4)
    found, expected = (
        load_file(next((directory / "best").glob("*.safetensors")))
        for directory in (together / case, tmp_path)
    )
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-2, atol=1e-4)
    kept = [point for point in both[0] if point.is_best][-1].checkpoint
    assert kept.kind == ("full" if kind in ("full", "head") else "adapter")
