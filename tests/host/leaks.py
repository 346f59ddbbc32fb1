"""What must not be left behind: descriptors, threads, tasks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if the body leaves an open descriptor, a thread or (in a running loop) a task. The loop's own pool is not used here."""

    def count() -> tuple[int, int, set[str]]:
        names = {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
        return len(os.listdir("/proc/self/fd")), threading.active_count(), names

    before = count()
    yield
    assert count() == before
