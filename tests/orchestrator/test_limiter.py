"""Suggestions wait for room: a real Ray."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.tune.search import Searcher

from orchestrator.experiment import ResourceSettings
from orchestrator.limiter import RoomLimiter


class Nothing(Searcher):
    """Suggests nothing."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        return None


@pytest.fixture
def three_cores() -> Iterator[None]:
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("three_cores")
def test_room_is_what_nodes_have_or_what_the_user_allows() -> None:
    for allowed, expected in ((None, 3), (2, 2), (100, 3)):
        limiter = RoomLimiter(Nothing(), ResourceSettings(max_concurrent=allowed))
        assert limiter.max_concurrent == expected
        limiter.suggest("none")
        assert limiter.max_concurrent == expected
