"""From measured memory to resources: never too many, as many as fit, and more where trials hold less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster import Cluster
from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment
from orchestrator.fitting import MARGIN, MOST_PER_GPU, fit
from orchestrator.nodes import Node
from orchestrator.reservations import resource_problems
from orchestrator.settings import ResourceSettings
from trainables.probe import Peak

GB = 10**9
NODE = 1000 * GB

peaks = st.builds(
    Peak,
    process_bytes=st.none() | st.integers(1, 300 * GB),
    gpu_bytes=st.integers(1, 70 * GB),
    gpu_total_bytes=st.just(80 * GB),
)
methods = st.dictionaries(st.sampled_from(["full", "lora", "head", "qlora"]), peaks, min_size=1)


def fit_in_ray(share: float) -> int:
    """Count the trials of this share that Ray puts on one GPU: it counts in ten-thousandths."""
    return 10_000 // round(share * 10_000)


@given(methods)
def test_no_gpu_and_no_node_is_given_more_than_it_holds(peaks: dict[str, Peak]) -> None:
    found = fit(peaks, NODE)
    hungriest = max(peak.gpu_bytes for peak in peaks.values())
    at_once = fit_in_ray(found.gpus_per_trial)
    assert at_once * hungriest * (1 + MARGIN) <= 80 * GB
    assert at_once == MOST_PER_GPU or (at_once + 1) * (hungriest * (1 + MARGIN) + 1) > 80 * GB
    held = [peak.process_bytes for peak in peaks.values() if peak.process_bytes]
    if held:
        assert found.memory_per_trial is not None
        assert max(held) * (1 + MARGIN) <= found.memory_per_trial < max(held) * (1 + MARGIN) + 1
    else:
        assert found.memory_per_trial is None


@given(methods, st.sampled_from(["full", "lora", "head", "qlora"]), peaks)
def test_a_method_more_or_a_hungrier_one_never_lets_more_trials_in(
    some: dict[str, Peak], name: str, more: Peak
) -> None:
    grown = {**some, name: more}
    if name in some and more.gpu_bytes < some[name].gpu_bytes:
        some, grown = grown, some
    assert fit_in_ray(fit(grown, NODE).gpus_per_trial) <= fit_in_ray(fit(some, NODE).gpus_per_trial)


def test_without_a_gpu_none_is_asked_for() -> None:
    found = fit({"head": Peak(2 * GB), "full": Peak(4 * GB)}, NODE)
    assert found.gpus_per_trial == 0
    assert found.memory_per_trial == pytest.approx(4.4 * GB)


@pytest.mark.parametrize(("held", "share"), [(60, 1.0), (36, 0.5), (24, 0.3333), (0.1, 0.0156)])
def test_the_share_of_a_gpu_is_the_largest_that_fits_as_often(held: float, share: float) -> None:
    peaks = {"full": Peak(GB, int(held * GB), 80 * GB), "head": Peak(GB, 1000, 80 * GB)}
    assert fit(peaks, NODE).gpus_per_trial == share


def test_what_does_not_fit_is_named() -> None:
    peaks = {"head": Peak(GB, GB, 80 * GB), "full": Peak(GB, 78 * GB, 80 * GB), "lora": Peak(NODE)}
    with pytest.raises(ExperimentError) as raised:
        fit(peaks, NODE)
    assert len(raised.value.problems) == 2
    assert "methods.full: a trial needs 85.80 GB of GPU memory, and a GPU has 80.00 GB" in str(raised.value)
    assert "methods.lora: a trial needs 1100.00 GB of memory, and the largest node has" in str(raised.value)


@pytest.mark.parametrize(("memory", "count"), [(2 * GB, 4), (6 * GB, 2), (16 * GB, 1)])
def test_memory_limits_how_many_trials_run_at_once(memory: int, count: int) -> None:
    experiment = Experiment.model_validate({"resources": {"memory_per_trial": memory}})
    assert Cluster((Node("one", 4, 0, 16 * GB),), is_joined=False, dashboard=None).slots(experiment) == count


def test_a_trial_that_asks_for_more_memory_than_there_is_is_refused() -> None:
    resources = ResourceSettings(memory_per_trial=17 * GB)
    [problem] = resource_problems(resources, [Node("one", 4, 0, 16 * GB)])
    assert problem.message == f"asks for {17 * GB} bytes, but one has {16 * GB} bytes"
