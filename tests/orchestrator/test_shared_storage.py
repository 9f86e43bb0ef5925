"""Storage on a cluster of two nodes, of which one cannot reach it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from s3_server import Proxy

from orchestrator.experiment import Experiment
from orchestrator.shared_storage import sharing_problems


@pytest.fixture
def blind_node(s3: Proxy) -> Iterator[str]:
    """The address of a node that has no way to the S3 server; the other one has."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(
        num_cpus=1, env_vars={"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, node_ip_address="127.0.0.2"
    )
    ray.init(cluster.address)
    yield "127.0.0.2"
    ray.shutdown()
    cluster.shutdown()


def test_a_uri_that_a_node_cannot_write_to_is_refused(blind_node: str, s3: Proxy) -> None:
    experiment = Experiment.model_validate({"storage": "s3://bucket/runs"})
    [problem] = sharing_problems(experiment)
    assert str(problem).startswith(f"storage: {blind_node}: s3://bucket/runs: cannot be written: ")
    assert "each node needs access of its own" in problem.message
    assert [method for method, _ in s3.seen][:1] == ["PUT"], "the other node has written"
