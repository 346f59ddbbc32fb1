"""Where what somebody copies goes: files with names that are free, and the terminal's clipboard.

The clipboard is reached as xterm's "Control Sequences" say (OSC 52). The invariant: no file is ever overwritten.
"""

from __future__ import annotations

import base64
from itertools import count
from pathlib import Path


def unused(name: str, suffix: str) -> Path:
    """Return a path in the current folder at which there is nothing yet."""
    return next(path for number in count() if not (path := Path(f"{name}-{number}.{suffix}")).exists())


def clipboard(text: str) -> str:
    """Return what a terminal must be sent to have ``text`` in its clipboard."""
    return f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07"
