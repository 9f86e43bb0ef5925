"""The process of a pack, when workers go and others come for their trials."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ray
from runs import small_experiment

from orchestrator.experiment import Assignment, Experiment
from orchestrator.pack_process import PackProcess
from orchestrator.prepare import prepare
from orchestrator.worker import Inputs, share
from results.evaluation import Evaluation


@pytest.fixture
def inputs(
    model_directories: dict[str, Path], data_files: dict[str, Path], tmp_path: Path
) -> Iterator[Inputs]:
    changes = {"training": {"epochs": 3, "batch_size": 8}, "methods": {"lora": {"rank": 2}}}
    values = small_experiment(tmp_path, model_directories["gpt2"], data_files, **changes)
    experiment = Experiment.model_validate(values)
    prepared = prepare(experiment, lambda text: None)
    experiment.run_directory.mkdir(parents=True)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield share(experiment, prepared, experiment.run_directory)
    ray.shutdown()


def in_time(ask: Callable[[], Any]) -> Any:
    """Return an answer, or fail where there is none: a thread that waits for ever would keep the tests."""
    answer: Future[Any] = Future()
    Thread(target=lambda: answer.set_result(ask()), daemon=True).start()
    return answer.result(timeout=60)


def test_a_trial_whose_worker_is_gone_goes_on_with_another(inputs: Inputs) -> None:
    """The first one's process may be there still, as long as nobody has asked how it ended."""
    pack = PackProcess(inputs, 3)
    workers = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
    trial = Assignment("lora", 0, {"rank": 2, "alpha": 4, "learning_rate": 1e-3})
    losses, frozen = [], []
    for worker, has_ended in zip(workers, (False, True, False), strict=True):
        assert pack.seat(worker.pid)
        pack.order(worker.pid, "begin", trial)
        outcome = in_time(partial(pack.order, worker.pid, "advance"))
        assert isinstance(outcome, Evaluation)
        losses.append(outcome.train_loss)
        frozen.append(gc.get_freeze_count())
        worker.kill()
        if has_ended:
            worker.wait()
    assert len(set(losses)) == 1, "each makes again what had not been saved"
    assert max(frozen) == frozen[0], "what trials hold was taken from the garbage collector"
    for worker in workers:
        worker.wait()
