"""Messages between a trial's driver and the processes that train it."""

from __future__ import annotations

import asyncio

import ray


@ray.remote(num_cpus=0)
class Board:
    """Passes a driver's orders to every rank, and outcomes back.

    Both are pickled by their senders, so that the board need not import what trials need.
    """

    def __init__(self, ranks: int) -> None:
        self._orders: list[asyncio.Queue[bytes | None]] = [asyncio.Queue() for _ in range(ranks)]
        self._outcomes: asyncio.Queue[bytes] = asyncio.Queue()

    async def give(self, order: bytes | None) -> None:
        for orders in self._orders:
            orders.put_nowait(order)

    async def take(self, rank: int) -> bytes | None:
        return await self._orders[rank].get()

    async def report(self, outcome: bytes) -> None:
        self._outcomes.put_nowait(outcome)

    async def outcome(self) -> bytes:
        return await self._outcomes.get()
