"""The port driver of VM-H's storage stack: it keeps the device busy with several requests, finished in any order.

The invariant: requests that overlap (and of which one writes) reach the device one after the other, in the order they
were given. So a write given up by its sender can never land on top of a later one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic_ns

from avmm.host.requests import Hops, Op, StorageRequest, StorageStage

IN_FLIGHT = 32
"""How many requests the device has at once, at most."""


class PortDriver(StorageStage):
    """Hands requests to ``device``."""

    def __init__(self, name: str, device: StorageStage, depth: int = IN_FLIGHT) -> None:
        super().__init__(f"port:{name}")
        self.device = device
        self.depth = depth
        self.in_flight: set[StorageRequest] = set()
        self._changed: asyncio.Future[None] | None = None

    async def perform(self, item: StorageRequest) -> None:
        item.hop(self.name)
        while self._must_wait(item):
            self._changed = asyncio.get_running_loop().create_future()
            await self._changed
        self.in_flight.add(item)
        item.on_finish(self._finished)
        if not self.device.offer(item):
            await self.device.put(item)

    def at_once(self, op: Op, lba: int, count: int, pieces: Sequence[memoryview], hops: Hops | None) -> bool:
        if hops is not None:
            hops.append((self.name, monotonic_ns()))
        return self.device.at_once(op, lba, count, pieces, hops)

    def _must_wait(self, request: StorageRequest) -> bool:
        in_flight = self.in_flight
        return bool(in_flight) and (len(in_flight) >= self.depth or any(map(request.overlaps, in_flight)))

    def _finished(self, request: StorageRequest) -> None:
        self.in_flight.discard(request)
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
