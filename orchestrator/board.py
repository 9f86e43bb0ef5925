"""What passes between the driver of a trial and the processes that train it."""

from __future__ import annotations

import asyncio
from typing import Any

import ray


@ray.remote(num_cpus=0)
class Board:
    """Passes a driver's orders to every rank, and what came of them back."""

    def __init__(self, ranks: int) -> None:
        self._orders: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(ranks)]
        self._outcomes: asyncio.Queue[Any] = asyncio.Queue()

    async def give(self, order: Any) -> None:
        for orders in self._orders:
            orders.put_nowait(order)

    async def take(self, rank: int) -> Any:
        return await self._orders[rank].get()

    async def report(self, outcome: Any) -> None:
        self._outcomes.put_nowait(outcome)

    async def outcome(self) -> Any:
        return await self._outcomes.get()
