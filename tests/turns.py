"""Waiting in tests without the host's clock: for turns of the event loop, and for what is sure to happen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 60
"""Seconds of the host's time after which what is sure to happen is taken for lost; no test that passes depends on it."""


async def turns(count: int = 50) -> None:
    """Let everything that is ready run, ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds, looking at every turn of the event loop."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)
