"""Messages of a console's socket as they come from a stream; their format is in wire.py."""

from __future__ import annotations

import asyncio

from avmm.control.seat import wire
from avmm.control.seat.wire import Kind


async def read(reader: asyncio.StreamReader, limit: int) -> tuple[Kind, bytes] | None:
    """Return the next message, None at the end of the stream. WireError when it is none, or has more than ``limit`` bytes."""
    try:
        kind, length = wire.decode_head(await reader.readexactly(wire.HEAD_SIZE), limit)
        return kind, await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        return None
