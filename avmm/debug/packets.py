"""Packets of the GDB Remote Serial Protocol (GDB manual, appendix E, "Overview"): framing only, no I/O.

``$data#checksum``, acknowledged by ``+`` or ``-`` until both sides agree to do without; ``}`` escapes a byte of the data.
A byte 0x03 outside a packet is an interrupt.

The invariant: whatever bytes come, they cost bounded memory and end in an event or in nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

PACKET_LIMIT = 0x10000
"""Bytes of a packet's data, as told to the other side."""
_ESCAPE, _SPECIAL = 0x7D, b"$#}*"


class Mark(enum.Enum):
    """What comes between packets."""

    ACK = "+"
    NAK = "-"
    INTERRUPT = "\x03"
    BROKEN = "broken"
    """A packet with a wrong checksum, or too long: it is to be sent again."""


class Decoder:
    """Finds packets in a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._checksum: bytearray | None = None
        self._inside = False
        self._too_long = False
        self.checked = True
        """Whether checksums count: not after QStartNoAckMode."""

    def feed(self, data: bytes) -> Iterator[bytes | Mark]:
        """Take bytes and yield the data of each packet, as it was before it was escaped, and the marks between."""
        for byte in data:
            if self._checksum is not None:
                self._checksum.append(byte)
                if len(self._checksum) == 2:
                    yield self._end(bytes(self._checksum))
            elif byte == ord("$"):  # also in the middle of a packet, whose end was lost
                self._buffer.clear()
                self._inside, self._too_long = True, False
            elif not self._inside:
                if byte in b"+-\x03":
                    yield Mark(chr(byte))
            elif byte == ord("#"):
                self._checksum = bytearray()
            elif len(self._buffer) < PACKET_LIMIT:
                self._buffer.append(byte)
            else:
                self._too_long = True

    def _end(self, digits: bytes) -> bytes | Mark:
        data = bytes(self._buffer)
        self._buffer.clear()
        self._checksum, self._inside = None, False
        try:
            right = int(digits, 16) == sum(data) & 0xFF
        except ValueError:
            right = False
        if self._too_long or (self.checked and not right):
            return Mark.BROKEN
        return unescape(data)


def unescape(data: bytes) -> bytes:
    """Return data as it was before :func:`escape`."""
    if _ESCAPE not in data:
        return data
    plain, escaped = bytearray(), False
    for byte in data:
        if escaped:
            plain.append(byte ^ 0x20)
            escaped = False
        elif byte == _ESCAPE:
            escaped = True
        else:
            plain.append(byte)
    return bytes(plain)


def escape(data: bytes) -> bytes:
    """Return data with what has a meaning in a packet escaped."""
    return b"".join(bytes((_ESCAPE, byte ^ 0x20)) if byte in _SPECIAL else bytes((byte,)) for byte in data)


def encode(data: bytes) -> bytes:
    """Return the packet that carries ``data``."""
    escaped = escape(data)
    return b"$%s#%02x" % (escaped, sum(escaped) & 0xFF)
