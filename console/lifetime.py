"""Running a command's coroutine to its end, whatever comes from outside: Ctrl-C, a kill, a lost terminal.

The invariant: the first signal cancels the command, which cleans up as for any cancellation; the exit status says which it was.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Coroutine
from typing import Any

import uvloop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(command: Coroutine[Any, Any, int]) -> int:
    """Return the command's exit status, or 128 and the number of the signal that ended it (130 for Ctrl-C)."""
    gc.freeze()  # what was imported stays: going through all of it would hold guests and keys up for tens of milliseconds, now and then
    try:
        return int(uvloop.run(_guarded(command)))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        gc.unfreeze()


async def _guarded(command: Coroutine[Any, Any, int]) -> int:
    loop = asyncio.get_running_loop()
    task = loop.create_task(command, name="command")
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        loop.remove_signal_handler(number)  # a second one ends the process at once
        task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not caught:
            raise
        return 128 + caught[0]
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
