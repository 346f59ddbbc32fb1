"""What holds for every test: nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator

import pytest
import uvloop

uvloop.new_event_loop().close()  # libuv makes a pipe for the whole process with its first loop


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the listing's own descriptor
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A test that leaks a descriptor, a thread or a task fails, and one that leaves the garbage collector switched off."""
    before, threads = _descriptors(), set(threading.enumerate())
    yield
    collecting = gc.isenabled()
    gc.enable()
    assert collecting, "the garbage collector was left switched off"
    left = _descriptors() - before
    more = set(threading.enumerate()) - threads
    if left or more:
        gc.collect()
        left = _descriptors() - before
        more = {thread for thread in set(threading.enumerate()) - threads if thread.is_alive()}
    assert not left, f"descriptors left open: {sorted(left)}"
    assert not more, f"threads left running: {sorted(thread.name for thread in more)}"
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    tasks = [task for task in asyncio.all_tasks(loop) if not task.done()]
    assert len(tasks) <= 1, f"tasks left running: {[task.get_name() for task in tasks]}"
