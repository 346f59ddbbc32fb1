"""What a loader says when an image cannot be started."""

from __future__ import annotations


class BootError(Exception):
    """An image cannot be started on this machine; the message is one sentence that says why."""
