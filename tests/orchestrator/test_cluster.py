"""What fits on which nodes, and addresses at which no cluster is."""

from __future__ import annotations

import socket

import pytest

from orchestrator.cluster import Cluster, connect
from orchestrator.errors import ExperimentError
from orchestrator.experiment import Experiment
from orchestrator.nodes import Node
from orchestrator.reservations import resource_problems
from orchestrator.run import main
from orchestrator.settings import ResourceSettings

SMALL, LARGE, GPUS = Node("small", 2, 0), Node("large", 4, 0), Node("gpus", 1, 2)


def asking(cpus: float, gpus: float = 0, concurrent: int | None = None) -> Experiment:
    resources = {"cpus_per_trial": cpus, "gpus_per_trial": gpus, "max_concurrent": concurrent}
    return Experiment.model_validate({"resources": resources})


@pytest.mark.parametrize(
    ("cpus", "gpus", "slots"),
    [
        (1, 0, 7),
        (2, 0, 3),
        (3, 0, 1),
        (4, 0, 1),
        (0.5, 0.5, 2),
        (0.25, 0.5, 4),
        (1, 1, 1),
        (0.1, 2, 1),
        (0.1, 0.6, 2),
    ],
)
def test_a_trial_fits_one_node(cpus: float, gpus: float, slots: int) -> None:
    """Counted by hand: what is left over on one node is of no use to another."""
    cluster = Cluster((SMALL, LARGE, GPUS), is_joined=True, dashboard=None)
    assert cluster.slots(asking(cpus, gpus)) == slots
    assert not resource_problems(asking(cpus, gpus).resources, cluster.nodes)


def test_a_trial_of_several_workers_takes_places_on_several_nodes() -> None:
    """Seven places of one CPU: three trials of two workers, two of three."""
    cluster = Cluster((SMALL, LARGE, GPUS), is_joined=True, dashboard=None)
    for workers, trials in ((2, 3), (3, 2), (7, 1)):
        resources = {"workers_per_trial": workers}
        experiment = Experiment.model_validate({"resources": resources})
        assert cluster.slots(experiment) == trials
        assert not resource_problems(experiment.resources, cluster.nodes)


def test_nodes_are_read_from_what_ray_calls_their_resources() -> None:
    resources = {"CPU": 8, "GPU": 1, "memory": 3e10, "node:10.0.0.2": 1, "accelerator_type:A10G": 1}
    assert Node.of("gpus", resources) == Node("gpus", 8, 1, 3e10, "A10G")
    assert Node.of("to come", {"CPU": 8}) == Node("to come", 8, 0)


def test_a_cluster_that_may_grow_has_no_limit_of_its_own() -> None:
    here, there = (Cluster((SMALL,), is_joined=joined, dashboard=None) for joined in (False, True))
    assert [here.limit(asking(1)), here.limit(asking(1, concurrent=9))] == [2, 2]
    assert [there.limit(asking(1)), there.limit(asking(1, concurrent=9))] == [None, None]


def test_gpus_that_no_trial_asks_for_are_mentioned() -> None:
    with_gpus, without = (Cluster(nodes, False, None) for nodes in ((SMALL, GPUS), (SMALL, LARGE)))
    said = with_gpus.unused(asking(1))
    assert said is not None
    assert "2 GPUs are not used" in said
    assert with_gpus.unused(asking(1, 0.5)) is None
    assert without.unused(asking(1)) is None


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "fragments"),
    [
        ([SMALL], 3, 0, ("resources.cpus_per_trial: asks for 3, but small has 2",)),
        ([SMALL, LARGE], 5, 0, ("resources.cpus_per_trial: asks for 5, but the largest of 2 nodes has 4",)),
        ([SMALL, LARGE], 1, 1, ("resources.gpus_per_trial: asks for 1, but the largest of 2 nodes has 0",)),
        ([LARGE, GPUS], 2, 1, ("no node has what one trial asks for", "gpus 1 CPU, 2 GPUs")),
    ],
)
def test_what_no_node_has_room_for_is_refused(
    nodes: list[Node], cpus: float, gpus: float, fragments: tuple[str, ...]
) -> None:
    [problem] = resource_problems(asking(cpus, gpus).resources, nodes)
    assert all(fragment in str(problem) for fragment in fragments)


def test_nodes_that_may_come_are_not_counted_twice() -> None:
    """Of two machines of one GPU each that the autoscaler may start, one or both are there."""
    gpu = Node("gpu", 1, 1)
    two, four = (ResourceSettings(workers_per_trial=workers, gpus_per_trial=1) for workers in (2, 4))
    for there in ([gpu], [gpu, gpu]):
        assert not resource_problems(two, there, to_come=[gpu, gpu])
        [problem] = resource_problems(four, there, to_come=[gpu, gpu])
        assert str(problem) == "resources.workers_per_trial: asks for 4, but there is room for 2"


def test_an_address_at_which_nothing_is(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for address in (f"127.0.0.1:{free}", f"ray://127.0.0.1:{free}"):
        assert main(["--address", address]) == 2
        said = capfd.readouterr().err
        assert f"--address {address}: nothing answers there" in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://", "127.0.0.1:port", ":6379"])
def test_what_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ExperimentError, match="not an address; expected 'auto' or HOST:PORT"):
        connect(None)


def test_a_client_port_that_does_not_answer_may_want_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray's client says after half a minute to who has none, as seen at a cluster that takes one."""

    def time_out(*_: object, **__: object) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr("ray.init", time_out)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ExperimentError, match="requires a token, set RAY_AUTH_MODE=token"):
            connect(address)
