"""The messages of the synthetic video protocol: formats only.

What the public guests of Hyper-V agree on (Linux ``drivers/video/fbdev/hyperv_fb.c``, OpenVMM ``uidevices/src/video/protocol.rs``).
Each message is one in-band packet of a pipe-mode channel: a pipe header (type 1, size), a message header (type, size), a body.
All is little-endian and packed.

The invariant: :func:`parse` gives a body that is as long as its type needs, or raises WireError; nothing else is assumed of a guest.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import astuple, dataclass
from typing import Final

from avmm.vmbus.wire import WireError

PIPE_DATA: Final = 1
RESOLUTIONS: Final = 64
EDID_SIZE: Final = 128
WIN10: Final = (3, 5)
MAJOR: Final = 3
ACCEPTED: Final = 1
POINTER_COMPLETE: Final = 0xFF
POINTER_LIMIT: Final = 96
"""The most pixels a pointer is wide or high."""

_HEADERS = struct.Struct("<IIII")
_VERSION_ANSWER = struct.Struct("<IBB")
_VRAM = struct.Struct("<QBQ")
_SITUATION = struct.Struct("<QBBIBIII")
_POSITION = struct.Struct("<BBii")
_SHAPE = struct.Struct("<BBIIII")
_DIRT = struct.Struct("<BB")
_RECTANGLE = struct.Struct("<iiii")


class Message(enum.IntEnum):
    """Types of messages. Odd ones up to 5, 7, 8, 10, 13 and 15 come from the guest."""

    VERSION_REQUEST = 1
    VERSION_RESPONSE = 2
    VRAM_LOCATION = 3
    VRAM_LOCATION_ACK = 4
    SITUATION_UPDATE = 5
    SITUATION_UPDATE_ACK = 6
    POINTER_POSITION = 7
    POINTER_SHAPE = 8
    FEATURE_CHANGE = 9
    DIRT = 10
    BIOS_INFO_REQUEST = 11
    BIOS_INFO_RESPONSE = 12
    RESOLUTION_REQUEST = 13
    RESOLUTION_RESPONSE = 14
    CAPABILITY_REQUEST = 15
    CAPABILITY_RESPONSE = 16


SIZES: Final = {
    Message.VERSION_REQUEST: 4,
    Message.VRAM_LOCATION: _VRAM.size,
    Message.SITUATION_UPDATE: _SITUATION.size,
    Message.POINTER_POSITION: _POSITION.size,
    Message.POINTER_SHAPE: _SHAPE.size,
    Message.DIRT: _DIRT.size,
    Message.BIOS_INFO_REQUEST: 0,
    Message.RESOLUTION_REQUEST: 1,
    Message.CAPABILITY_REQUEST: 0,
}
"""The least bytes of body of each message of the guest's."""


@dataclass(frozen=True, slots=True)
class Situation:
    """How the picture lies in the frame buffer."""

    active: int
    offset: int
    depth: int
    """Bits of a pixel: 32 (blue, green, red, unused) or 16 (5-6-5)."""
    width: int
    height: int
    pitch: int
    """Bytes from one row to the next."""

    @property
    def end(self) -> int:
        """The first byte of the frame buffer behind the picture."""
        return self.offset + self.pitch * (self.height - 1) + self.width * self.depth // 8


@dataclass(frozen=True, slots=True)
class PointerPart:
    """A piece of a pointer's picture; the last one has ``index`` POINTER_COMPLETE."""

    index: int
    argb: bool
    width: int
    height: int
    data: bytes


def parse(payload: bytes) -> tuple[int, bytes]:
    """Take a packet apart into type and body. WireError when it is no message, or too short for its type."""
    if len(payload) < _HEADERS.size:
        raise WireError(f"video: {len(payload)} bytes are no message")
    pipe, size, kind, _ = _HEADERS.unpack_from(payload)
    if pipe != PIPE_DATA or not 8 <= size <= len(payload) - 8:
        raise WireError(f"video: a pipe header of type {pipe} for {size} bytes in a packet of {len(payload)}")
    body = payload[_HEADERS.size : 8 + size]
    if len(body) < SIZES.get(kind, 0):
        raise WireError(f"video: message {kind} with {len(body)} bytes, it has {SIZES[Message(kind)]}")
    return kind, body


def pack(kind: Message, body: bytes) -> bytes:
    """Return a whole packet's payload."""
    return _HEADERS.pack(PIPE_DATA, 8 + len(body), kind, 8 + len(body)) + body


def version(body: bytes) -> tuple[int, int]:
    """Return the major and the minor version that a guest asks for."""
    (value,) = struct.unpack_from("<I", body)
    return value & 0xFFFF, value >> 16


def version_answer(asked: tuple[int, int], accepted: bool) -> bytes:
    """Return the answer to a version, for one monitor."""
    return _VERSION_ANSWER.pack(asked[1] << 16 | asked[0], ACCEPTED if accepted else 0, 1)


def vram_location(body: bytes) -> tuple[int, int | None]:
    """Return the guest's context and where it wants the frame buffer: an address, or None for nowhere."""
    context, given, address = _VRAM.unpack_from(body)
    return context, address if given else None


def situation(body: bytes) -> tuple[int, int, Situation]:
    """Return the guest's context, how many monitors it speaks of, and what the first one shows."""
    context, count, *rest = _SITUATION.unpack_from(body)
    return context, count, Situation(*rest)


def pack_situation(context: int, shown: Situation) -> bytes:
    """Return the body of a situation update, for guests."""
    return _SITUATION.pack(context, 1, *astuple(shown))


def pointer_position(body: bytes) -> tuple[bool, int, int]:
    """Return whether the pointer can be seen, and where its picture's upper left corner is."""
    visible, _, x, y = _POSITION.unpack_from(body)
    return bool(visible), x, y


def pointer_part(body: bytes) -> PointerPart:
    """Return a piece of a pointer. WireError when the pointer is larger than allowed."""
    index, argb, width, height, _, _ = _SHAPE.unpack_from(body)
    if not (0 < width <= POINTER_LIMIT and 0 < height <= POINTER_LIMIT):
        raise WireError(f"video: a pointer of {width}x{height} pixels, the largest has {POINTER_LIMIT}x{POINTER_LIMIT}")
    return PointerPart(index, bool(argb & 1), width, height, body[_SHAPE.size :])


def dirt(body: bytes) -> list[tuple[int, int, int, int]]:
    """Return the rectangles that have changed: left, top, right, bottom. WireError when there are fewer than announced."""
    _, count = _DIRT.unpack_from(body)
    if len(body) < _DIRT.size + count * _RECTANGLE.size:
        raise WireError(f"video: {count} rectangles in {len(body)} bytes")
    return [_RECTANGLE.unpack_from(body, _DIRT.size + i * _RECTANGLE.size) for i in range(count)]


def resolutions_answer(most: int, sizes: list[tuple[int, int]]) -> bytes:
    """Return the answer to a request for at most ``most`` sizes of the screen; the first one is what the host wants."""
    listed = sizes[: min(most, RESOLUTIONS)]
    table = b"".join(struct.pack("<HH", *one) for one in listed).ljust(4 * RESOLUTIONS, b"\0")
    return edid(*sizes[0]) + bytes((len(listed), 0, 0)) + table


def edid(width: int, height: int) -> bytes:
    """Return the block by which a monitor says who it is (VESA E-EDID 1.4): one detailed timing of ``width`` by ``height`` at 60 Hz."""
    blank_x, blank_y = 160, 30
    clock = (width + blank_x) * (height + blank_y) * 60 // 10_000
    timing = struct.pack(
        "<HBBBBBBBBBBBBBBBB", clock & 0xFFFF, width & 0xFF, blank_x & 0xFF, width >> 8 << 4 | blank_x >> 8, height & 0xFF, blank_y,
        height >> 8 << 4, 48, 32, 0x36, 0, 0, 0, 0, 0, 0, 0x1E,
    )  # fmt: skip
    name = b"\0\0\0\xfc\0" + b"avmm\n".ljust(13)
    unused = b"\0\0\0\x10\0" + bytes(13)
    maker = (ord("A") - 64) << 10 | (ord("V") - 64) << 5 | ord("M") - 64
    head = b"\0" + b"\xff" * 6 + b"\0" + struct.pack(">H", maker) + struct.pack("<HIBBBB", 1, 0, 0, 30, 1, 4)
    features = bytes((0x80, 0, 0, 120, 0x06)) + bytes.fromhex("ee95a3544c99260f5054") + bytes(3) + b"\x01\x01" * 8
    block = head + features + timing + name + unused + unused + b"\0"
    return block + bytes((-sum(block) & 0xFF,))
