"""Packets for a guest's driver that wait for room in its ring. For servers of small messages: keyboard and monitor.

The invariant: they go out in the order in which they came, each once, as long as the channel is open; when it closes they are forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from avmm.vmbus.packets import PacketKind
from avmm.vmbus.server import ChannelEnd


class Outbox:
    """The way to the guest on one channel; how much may wait is the server's business."""

    def __init__(self) -> None:
        self.channel: ChannelEnd | None = None
        """Open while there is one."""
        self.waiting: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    def open(self, channel: ChannelEnd) -> None:
        """Send over this channel from now on."""
        self.channel = channel
        channel.on_room = self._flush

    def close(self) -> None:
        """Send no more."""
        self.channel = None
        self.waiting.clear()

    def put(self, payloads: Iterable[bytes]) -> None:
        """Send in-band packets, as soon as there is room."""
        self.waiting.extend(payloads)
        self._flush()

    def _flush(self) -> None:
        channel, waiting = self.channel, self.waiting
        while channel is not None and waiting and channel.send(PacketKind.IN_BAND, waiting[0], 0):
            waiting.popleft()
