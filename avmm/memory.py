"""A guest's physical memory as devices, loaders and people see it.

Every access is bounded by the RAM there is: what lies beyond reads as all-ones and swallows writes, as on a bus where
nobody answers. A write tells the processor, which may hold translated code of that page (:attr:`GuestMemory.on_write`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from avmm._pieces import Pieces, of_pages, of_segments

PAGE: Final = 4096
Segment = tuple[int, int]
"""Guest-physical address and length of memory in one piece."""


class GuestMemory:
    """Bounded view of guest RAM, addressed by guest-physical address."""

    __slots__ = ("copied", "on_write", "size", "view")

    def __init__(self, view: memoryview, on_write: Callable[[int, int], None] | None = None) -> None:
        self.view = view
        """The RAM itself, as bytes. Writing through it skips bounds as well as the processor: devices use :meth:`write`."""
        self.size = len(view)
        self.copied = 0
        """Bytes that devices have copied to, from and on the way to this memory: :meth:`read`, :meth:`write`, and what they add."""
        self.on_write = on_write
        """``on_write(address, length)`` after each write: DMA into pages with translated code must invalidate it."""

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at guest-physical ``address``; bytes outside RAM are 0xFF."""
        self.copied += length
        if 0 <= address and address + length <= self.size:
            return bytes(self.view[address : address + length])
        inside = bytes(self.view[address : self.size]) if 0 <= address < self.size else b""
        return inside[:length].ljust(length, b"\xff")

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store ``data`` at guest-physical ``address``; bytes outside RAM are dropped."""
        room = self.size - address
        if address < 0 or room <= 0:
            return
        length = min(len(data), room)
        self.copied += length
        self.view[address : address + length] = data if length == len(data) else data[:length]
        if self.on_write is not None and length:
            self.on_write(address, length)

    def pieces(self, segments: Sequence[Segment]) -> Pieces | None:
        """Return the RAM of segments, for someone who moves bytes himself; None where not all of it is RAM.

        What follows one another is one piece. After storing into it: :meth:`changed`.
        """
        return _of_segments(self.view, segments)

    def pages(self, listed: bytes, at: int, offset: int, length: int) -> Pieces | None:
        """Return the RAM of ``length`` bytes that begin ``offset`` bytes into the first of some pages, as :meth:`pieces` does.

        Their numbers, of 64 bits, are in ``listed`` from ``at`` on.
        """
        return _of_pages(self.view, listed, at, offset, length)

    def changed(self, segments: Sequence[Segment]) -> None:
        """Tell the processor that segments got other contents, by way of :meth:`pieces`."""
        if self.on_write is not None:
            for address, length in segments:
                self.on_write(address, length)

    def unpack(self, layout: str, address: int) -> tuple[int, ...]:
        """Return the fields of ``layout`` (a struct format) at ``address``."""
        return struct.unpack(layout, self.read(address, struct.calcsize(layout)))

    def pack(self, layout: str, address: int, *values: int) -> None:
        """Store ``values`` in ``layout`` (a struct format) at ``address``."""
        self.write(address, struct.pack(layout, *values))


_of_pages: Final = of_pages  # of an imported name the module's table would be asked each time
_of_segments: Final = of_segments
