"""One request of the built-in guest by each path from a program to the file in VM-H, traced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from avmm.control.demo_storage import MODES, DemoError, booted, say, switch
from avmm.control.request_trace import RequestTrace, trace_requests

PATHS = tuple(MODES)
COMMANDS = {"read": "read motd.txt", "write": "write traced one line"}
"""What the guest is told to do; the first request of the operation is the one that is traced."""


async def demo_trace(image: str | Path, paths: Iterable[str] = PATHS, op: str = "read") -> AsyncGenerator[RequestTrace, None]:
    """Trace one request by each of ``paths``, on a copy of ``image``, once everything on its way has been used."""
    async with booted(image) as vm:
        for path in paths:
            await switch(vm, path)
            await say(vm, COMMANDS[op])
            tracing = asyncio.create_task(trace_requests(vm, 1, op))
            await asyncio.sleep(0)  # it follows
            await say(vm, COMMANDS[op])
            found = await tracing
            if not found or found[0].path != path:
                raise DemoError(f"The built-in guest sent nothing by {path}.")
            yield found[0]
