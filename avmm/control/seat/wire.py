"""What goes over a console socket: formats only.

A message is a kind (1 byte), the length of what follows (4 bytes), and that; numbers are big-endian. The first is the host's HELLO.
From then on the host sends what changed, and the client what its person does; each thing done is answered with DONE, in order. Text
pictures go as the rows that differ from the picture before. Small messages are JSON.

The invariant: what is decoded is checked: a message that is not exactly what it should be is a :class:`WireError`, never a wrong picture.
"""

from __future__ import annotations

import enum
import json
import struct
import zlib
from typing import Any

from avmm.control.seat.picture import Picture, PixelPicture, TextPicture
from avmm.devices.keys import KEYS

VERSION = 1
TO_HOST_LIMIT = 1 << 16
TO_CLIENT_LIMIT = 32 << 20
_HEAD = struct.Struct(">BI")
HEAD_SIZE = _HEAD.size
_TEXT = struct.Struct(">HHhh?48s")
_ROW = struct.Struct(">H")
_PIXELS = struct.Struct(">HHHH")
_MOUSE = struct.Struct(">hhbB")
_ROOM = struct.Struct(">HH")


class WireError(ValueError):
    """The other side does not keep to the format."""


class Kind(enum.IntEnum):
    """What a message is."""

    HELLO = 1
    TEXT = 2
    PIXELS = 3
    SERIAL = 4
    FACTS = 5
    BELL = 6
    DONE = 7
    PRESS = 16
    TYPE = 17
    SEND = 18
    BREAK = 19
    MOUSE = 20
    ROOM = 21


def message(kind: Kind, payload: bytes = b"") -> bytes:
    """Return a message."""
    return _HEAD.pack(kind, len(payload)) + payload


def decode_head(head: bytes, limit: int) -> tuple[Kind, int]:
    """Return the kind of the message that begins with :data:`HEAD_SIZE` bytes, and how many more it has, ``limit`` at most."""
    kind, length = _HEAD.unpack(head)
    if length > limit:
        raise WireError(f"a message of {length} bytes")
    try:
        return Kind(kind), length
    except ValueError as error:
        raise WireError(str(error)) from None


def encode_json(value: object) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def decode_json(payload: bytes) -> dict[str, Any]:
    """Return a JSON object."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise WireError("no JSON object")
    return value


# -- pictures


def encode_picture(picture: Picture, before: Picture | None) -> bytes:
    """Return the message that turns ``before`` into ``picture`` at the other side."""
    if isinstance(picture, PixelPicture):
        head = _PIXELS.pack(picture.width, picture.height, *picture.size)
        return message(Kind.PIXELS, head + zlib.compress(picture.rgb, 1))
    column, row = picture.cursor if picture.cursor is not None else (-1, -1)
    parts = [_TEXT.pack(picture.columns, picture.rows, column, row, picture.blink, picture.palette)]
    known = before if isinstance(before, TextPicture) and before.size == picture.size else None
    for number in range(picture.rows):
        cells = picture.row(number)
        if known is None or known.row(number) != cells:
            parts += [_ROW.pack(number), cells]
    return message(Kind.TEXT, b"".join(parts))


def decode_text(payload: bytes, before: Picture | None) -> TextPicture:
    """Return the text picture that a TEXT message makes of the one before."""
    if len(payload) < _TEXT.size:
        raise WireError("a short picture")
    columns, rows, column, row, blink, palette = _TEXT.unpack_from(payload)
    pitch = 2 * columns
    known = isinstance(before, TextPicture) and before.size == (columns, rows)
    cells = bytearray(before.cells if known and before is not None and isinstance(before, TextPicture) else bytes(pitch * rows))
    rest = memoryview(payload)[_TEXT.size :]
    size = _ROW.size + pitch
    if not pitch or not rows or len(rest) % size:
        raise WireError("a picture with half a row")
    for at in range(0, len(rest), size):
        (number,) = _ROW.unpack_from(rest, at)
        if number >= rows:
            raise WireError(f"row {number} of {rows}")
        cells[number * pitch : (number + 1) * pitch] = rest[at + _ROW.size : at + size]
    return TextPicture(columns, rows, bytes(cells), (column, row) if column >= 0 else None, palette, blink)


def decode_pixels(payload: bytes) -> PixelPicture:
    """Return the picture of a PIXELS message."""
    if len(payload) < _PIXELS.size:
        raise WireError("a short picture")
    width, height, *size = _PIXELS.unpack_from(payload)
    inflate = zlib.decompressobj()
    try:
        rgb = inflate.decompress(payload[_PIXELS.size :], 3 * width * height + 1)
    except zlib.error as error:
        raise WireError(f"a picture that is broken: {error}") from None
    if not rgb or len(rgb) != 3 * width * height or not inflate.eof:
        raise WireError(f"a picture of {width}x{height} with {len(rgb)} bytes")
    return PixelPicture(width, height, rgb, (size[0], size[1]))


# -- input


def encode_press(keys: tuple[str, ...]) -> bytes:
    """Return PRESS."""
    return message(Kind.PRESS, " ".join(keys).encode())


def decode_press(payload: bytes) -> tuple[str, ...]:
    """Return the keys of PRESS, all of which there are."""
    keys = tuple(payload.decode("ascii", "replace").split())
    for key in keys:
        if key not in KEYS:
            raise WireError(f"no key is called {key!r}")
    return keys


def encode_mouse(dx: int, dy: int, wheel: int, buttons: int) -> bytes:
    """Return MOUSE."""
    return message(Kind.MOUSE, _MOUSE.pack(_within(dx, 15), _within(dy, 15), _within(wheel, 7), buttons & 0x1F))


def decode_mouse(payload: bytes) -> tuple[int, int, int, int]:
    """Return dx, dy, wheel and buttons."""
    if len(payload) != _MOUSE.size:
        raise WireError("a mouse message of another size")
    dx, dy, wheel, buttons = _MOUSE.unpack(payload)
    return dx, dy, wheel, buttons


def encode_room(width: int, height: int) -> bytes:
    """Return ROOM."""
    return message(Kind.ROOM, _ROOM.pack(min(max(width, 1), 0xFFFF), min(max(height, 1), 0xFFFF)))


def decode_room(payload: bytes) -> tuple[int, int]:
    """Return width and height in pixels, both above 0."""
    if len(payload) != _ROOM.size:
        raise WireError("a room message of another size")
    width, height = _ROOM.unpack(payload)
    return max(1, width), max(1, height)


def _within(value: int, bits: int) -> int:
    return max(-(1 << bits), min((1 << bits) - 1, value))
