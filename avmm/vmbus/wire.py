"""VMBus control messages: sizes, numbers, encoders and decoders. Ring packets are in packets.py.

As in Linux' include/linux/hyperv.h, OpenVMM's vmbus_core and QEMU's vmbus-proto.h. All values are little-endian.
Decoders take bytes that were copied out of shared memory and check every length in them.

The invariant: a decoder either returns values that lie within its input or raises WireError with one clear sentence.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, fields
from typing import ClassVar, Self

PAGE = 4096
MESSAGE_PAYLOAD = 240
"""The most one posted message carries."""
USER_DATA = 120
MAX_CHANNEL = 2047
NEVER_INTERRUPT = 0xFFFFFFFF
"""As a target virtual processor: the guest polls."""
SUCCESS, FAILED = 0, 0x8000FFFF
"""Status words in results; anything but zero is a failure to the guest."""


class WireError(ValueError):
    """What the other side sent is not well-formed; one sentence says how."""


class Version(enum.IntEnum):
    """Protocol versions this server speaks: ``major << 16 | minor``."""

    WIN8 = 0x00020004
    WIN8_1 = 0x00030000
    WIN10 = 0x00040000
    WIN10_4_1 = 0x00040001
    WIN10_5_0 = 0x00050000
    WIN10_5_1 = 0x00050001
    WIN10_5_2 = 0x00050002
    WIN10_5_3 = 0x00050003


# -- control messages

HEADER = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Message:
    """A control message: fields in wire order, packed by ``BODY`` after the header of 8 bytes."""

    TYPE: ClassVar[int] = 0
    BODY: ClassVar[struct.Struct] = struct.Struct("")

    def pack(self) -> bytes:
        """Return the message as posted."""
        return HEADER.pack(self.TYPE, 0) + self.BODY.pack(*[getattr(self, one.name) for one in fields(self)])

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the message; bytes after its end are ignored, as guests may round sizes up."""
        if len(data) < HEADER.size + cls.BODY.size:
            raise WireError(f"{cls.__name__} of {len(data)} bytes is shorter than {HEADER.size + cls.BODY.size}")
        return cls(*cls.BODY.unpack_from(data, HEADER.size))

    @classmethod
    def size(cls) -> int:
        """The length on the wire, header included."""
        return HEADER.size + cls.BODY.size


@dataclass(frozen=True, slots=True)
class OfferChannel(Message):
    """Host to guest: here is a channel."""

    TYPE = 1
    BODY = struct.Struct("<16s16s16xHH120sHHIBBHI")
    interface: bytes
    instance: bytes
    flags: int
    mmio_megabytes: int
    user_data: bytes
    sub_channel: int
    mmio_optional: int
    channel_id: int
    monitor_id: int
    monitor_allocated: int
    dedicated_interrupt: int
    connection_id: int


@dataclass(frozen=True, slots=True)
class RescindChannelOffer(Message):
    """Host to guest: the channel goes away."""

    TYPE = 2
    BODY = struct.Struct("<I")
    channel_id: int


@dataclass(frozen=True, slots=True)
class RequestOffers(Message):
    """Guest to host: tell me the channels."""

    TYPE = 3


@dataclass(frozen=True, slots=True)
class AllOffersDelivered(Message):
    """Host to guest: that were all there are now."""

    TYPE = 4


@dataclass(frozen=True, slots=True)
class OpenChannel(Message):
    """Guest to host: connect this channel to the rings in that GPADL."""

    TYPE = 5
    BODY = struct.Struct("<IIIII120s")
    channel_id: int
    open_id: int
    gpadl: int
    target_vp: int
    downstream_page: int
    user_data: bytes = bytes(USER_DATA)


@dataclass(frozen=True, slots=True)
class OpenChannelResult(Message):
    """Host to guest."""

    TYPE = 6
    BODY = struct.Struct("<III")
    channel_id: int
    open_id: int
    status: int


@dataclass(frozen=True, slots=True)
class CloseChannel(Message):
    """Guest to host; there is no answer."""

    TYPE = 7
    BODY = struct.Struct("<I")
    channel_id: int


@dataclass(frozen=True, slots=True)
class GpadlHeader(Message):
    """Guest to host: the beginning of a list of pages. ``data`` is as much of the range data as fitted."""

    TYPE = 8
    BODY = struct.Struct("<IIHH")
    channel_id: int
    gpadl: int
    range_bytes: int
    range_count: int
    data: bytes = b""

    def pack(self) -> bytes:
        head = self.BODY.pack(self.channel_id, self.gpadl, self.range_bytes, self.range_count)
        return HEADER.pack(self.TYPE, 0) + head + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) < cls.size():
            raise WireError(f"GpadlHeader of {len(data)} bytes is shorter than {cls.size()}")
        channel_id, gpadl, range_bytes, range_count = cls.BODY.unpack_from(data, HEADER.size)
        return cls(channel_id, gpadl, range_bytes, range_count, data[cls.size() :])


@dataclass(frozen=True, slots=True)
class GpadlBody(Message):
    """Guest to host: more of the range data. It names no channel."""

    TYPE = 9
    BODY = struct.Struct("<II")
    number: int
    gpadl: int
    data: bytes = b""

    def pack(self) -> bytes:
        return HEADER.pack(self.TYPE, 0) + self.BODY.pack(self.number, self.gpadl) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) < cls.size():
            raise WireError(f"GpadlBody of {len(data)} bytes is shorter than {cls.size()}")
        number, gpadl = cls.BODY.unpack_from(data, HEADER.size)
        return cls(number, gpadl, data[cls.size() :])


@dataclass(frozen=True, slots=True)
class GpadlCreated(Message):
    """Host to guest."""

    TYPE = 10
    BODY = struct.Struct("<III")
    channel_id: int
    gpadl: int
    status: int


@dataclass(frozen=True, slots=True)
class GpadlTeardown(Message):
    """Guest to host: I want these pages back."""

    TYPE = 11
    BODY = struct.Struct("<II")
    channel_id: int
    gpadl: int


@dataclass(frozen=True, slots=True)
class GpadlTorndown(Message):
    """Host to guest: the pages are not touched any more. It names no channel."""

    TYPE = 12
    BODY = struct.Struct("<I")
    gpadl: int


@dataclass(frozen=True, slots=True)
class RelidReleased(Message):
    """Guest to host: the channel id of a rescinded offer is free again."""

    TYPE = 13
    BODY = struct.Struct("<I")
    channel_id: int


@dataclass(frozen=True, slots=True)
class InitiateContact(Message):
    """Guest to host: let us speak this version. From 5.0 on ``interrupt_page`` is ``u8 sint, u8 vtl, u16 0, u32 features``."""

    TYPE = 14
    BODY = struct.Struct("<IIQQQ")
    version: int
    target_vp: int = 0
    interrupt_page: int = 0
    monitor_to_child: int = 0
    monitor_to_parent: int = 0

    @property
    def sint(self) -> int:
        """The synthetic interrupt for messages, from 5.0 on."""
        return self.interrupt_page & 0xFF

    @property
    def vtl(self) -> int:
        """The virtual trust level, from 5.1 on."""
        return self.interrupt_page >> 8 & 0xFF


@dataclass(frozen=True, slots=True)
class VersionResponse(Message):
    """Host to guest. ``selected`` is the version below 5.0, and from there on the connection id for messages."""

    TYPE = 15
    BODY = struct.Struct("<BBxxI")
    supported: int
    state: int
    selected: int


@dataclass(frozen=True, slots=True)
class Unload(Message):
    """Guest to host: good-bye."""

    TYPE = 16


@dataclass(frozen=True, slots=True)
class UnloadComplete(Message):
    """Host to guest."""

    TYPE = 17


@dataclass(frozen=True, slots=True)
class ModifyChannel(Message):
    """Guest to host, from 4.1 on: interrupt another virtual processor."""

    TYPE = 22
    BODY = struct.Struct("<II")
    channel_id: int
    target_vp: int


@dataclass(frozen=True, slots=True)
class ModifyChannelResponse(Message):
    """Host to guest, from 5.3 on."""

    TYPE = 24
    BODY = struct.Struct("<II")
    channel_id: int
    status: int


def message_type(data: bytes) -> int:
    """Return the number of a control message."""
    if len(data) < HEADER.size:
        raise WireError(f"a message of {len(data)} bytes has no header")
    number: int = HEADER.unpack_from(data)[0]
    return number
