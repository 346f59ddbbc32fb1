"""How often Python's threads get the interpreter: more often than usual while a host is open.

The switch interval belongs to the process. The invariant: with the last host closed it is what it was before the first was
opened, or what somebody else has set meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERVAL = 0.0002
"""Seconds after which a thread that waits for the interpreter asks for it. Python's own 5 ms is longer than a guest's slice: uvloop lets
go of the interpreter for an instant between two slices, which starts the wait anew, and beside a busy guest no file is ever closed."""

_open = 0
_before = _ours = 0.0


@contextmanager
def frequent_switches() -> Iterator[None]:
    """Have the interval no longer than :data:`INTERVAL`. May be entered any number of times, and left in any order."""
    global _open, _before, _ours  # noqa: PLW0603 - so is the interval
    if not _open:
        _before = sys.getswitchinterval()
        sys.setswitchinterval(min(_before, INTERVAL))
        _ours = sys.getswitchinterval()
    _open += 1
    try:
        yield
    finally:
        _open -= 1
        if not _open and sys.getswitchinterval() == _ours:
            sys.setswitchinterval(_before)
