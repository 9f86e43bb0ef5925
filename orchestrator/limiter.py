"""Limits concurrent suggestions to what the cluster has room for at the moment."""

from __future__ import annotations

from typing import Any

from ray.tune.search import ConcurrencyLimiter, Searcher

from orchestrator.nodes import alive_nodes, node_types, trials_at_once
from orchestrator.settings import ResourceSettings


class RoomLimiter(ConcurrencyLimiter):
    """Limit a searcher by the nodes that are there or that the autoscaler may add, counted anew each time.

    ``max_concurrent`` of the resources may lower the limit. Suggestions wait for room, as with a fixed limit,
    so that each one can use the results of all trials that ended before it.
    """

    def __init__(self, searcher: Searcher, resources: ResourceSettings) -> None:
        self._resources = resources
        super().__init__(searcher, max_concurrent=self._room())

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        self.max_concurrent = self._room()
        return super().suggest(trial_id)

    def _room(self) -> int:
        return max(trials_at_once(nodes, self._resources) for nodes in (alive_nodes(), node_types()))
