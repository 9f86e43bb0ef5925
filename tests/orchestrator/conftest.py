"""A real Ray for tests that need no run of the command."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture
def local_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start Ray with two CPUs, or as many as an indirect parameter says."""
    ray.init("local", num_cpus=getattr(request, "param", 2), include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
