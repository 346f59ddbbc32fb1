"""An answer that a vCPU waits for inside its instruction, while a device changes hands.

The invariant: machine time goes on meanwhile, as it does in HLT, so that whatever the answer waits for can happen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from avmm.clock import SECOND, VirtualClock
from avmm.hypervisor.partition import Partition

SLEEP = 0.001


class Answer:
    """One answer."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def set_result(self, value: int) -> None:
        """Give the answer."""
        self._future.set_result(value)

    def done(self) -> bool:
        """Whether nobody waits any more."""
        return self._future.done()

    def __await__(self) -> Generator[Any, Any, int]:
        return self._wait().__await__()

    async def _wait(self) -> int:
        clock = self._partition.clock
        while not self._future.done():
            blocker = clock.run_due()
            if self._future.done():
                break
            due = clock.next_due()
            if blocker is not None:
                await asyncio.shield(blocker)
            elif isinstance(clock, VirtualClock) and due is not None:
                clock.advance_to(due)
                await asyncio.sleep(0)
            else:
                await asyncio.wait([self._future], timeout=0 if due is not None and due - clock.now() < SECOND // 1000 else SLEEP)
        return self._future.result()
