"""Suggestions wait for room: a real Ray."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.search import Searcher

from orchestrator.limiter import RoomLimiter
from orchestrator.settings import ResourceSettings


class Nothing(Searcher):
    """Suggests nothing."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        return None


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("local_ray", [3], indirect=True)
def test_room_is_what_nodes_have_or_what_the_user_allows() -> None:
    for allowed, expected in ((None, 3), (2, 2), (100, 3)):
        limiter = RoomLimiter(Nothing(), ResourceSettings(max_concurrent=allowed))
        assert limiter.max_concurrent == expected
        limiter.suggest("none")
        assert limiter.max_concurrent == expected
