"""The wire format of StorVSP: vstor packets and SCSI requests in ring payloads. Formats only, no behaviour.

As in Linux' drivers/scsi/storvsc_drv.c and OpenVMM's storvsp_protocol. Everything is little-endian and packed, except CDBs and SCSI
data, which are big-endian and opaque here. A packet is 64 bytes from version 6.0 on and 48 before; the longer one only has a longer
tail.

The invariant: parsing copies, checks lengths and nothing else; whatever was parsed can be packed again to the same bytes.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, Self, final
from uuid import UUID

from librt.strings import BytesWriter, read_i16_le, read_i32_le, write_i32_le, write_i64_le
from mypy_extensions import i32, i64, mypyc_attr

SCSI_INTERFACE: Final = UUID("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
IDE_INTERFACE: Final = UUID("32412632-86cb-44a2-9b5c-50d1417354f5")

_HEADER: Final = struct.Struct("<III")
_REQUEST: Final = struct.Struct("<HBBBBBBBBBBI20s")
_PROPERTIES: Final = struct.Struct("<IHHIIQ")
_IDE_USER_DATA: Final = struct.Struct("<HBBII12x")

HEADER_SIZE: Final = _HEADER.size
REQUEST_V1_SIZE: Final = _REQUEST.size
REQUEST_V2_SIZE: Final = 52
PACKET_V1_SIZE: Final = HEADER_SIZE + REQUEST_V1_SIZE
PACKET_V2_SIZE: Final = HEADER_SIZE + REQUEST_V2_SIZE
SENSE_SIZE: Final = 20
CDB_SIZE: Final = 16
COMPLETION_REQUESTED: Final = 1


class WireError(ValueError):
    """A packet is too short for what it claims to be."""


class Operation(enum.IntEnum):
    """What a vstor packet asks for, or tells."""

    COMPLETE_IO = 1
    REMOVE_DEVICE = 2
    EXECUTE_SRB = 3
    RESET_LUN = 4
    RESET_ADAPTER = 5
    RESET_BUS = 6
    BEGIN_INITIALIZATION = 7
    END_INITIALIZATION = 8
    QUERY_PROTOCOL_VERSION = 9
    QUERY_PROPERTIES = 10
    ENUMERATE_BUS = 11
    FCHBA_DATA = 12
    CREATE_SUB_CHANNELS = 13
    EVENT_NOTIFICATION = 14


class Version(enum.IntEnum):
    """Protocol versions, ``major << 8 | minor``."""

    WIN6 = 0x0200
    WIN7 = 0x0402
    WIN8 = 0x0501
    WIN8_1 = 0x0600
    WIN10 = 0x0602


def packet_size(version: int) -> int:
    """Return the bytes of the largest packet in a protocol version."""
    return PACKET_V2_SIZE if version >= Version.WIN8_1 else PACKET_V1_SIZE


class NtStatus(enum.IntEnum):
    """The statuses that a packet header carries."""

    SUCCESS = 0
    DATA_OVERRUN = 0x80000005
    DEVICE_BUSY = 0x80000011
    INVALID_PARAMETER = 0xC000000D
    INVALID_DEVICE_REQUEST = 0xC0000010
    REVISION_MISMATCH = 0xC0000059
    IO_TIMEOUT = 0xC00000B5
    DEVICE_NOT_CONNECTED = 0xC000009D
    DEVICE_DOES_NOT_EXIST = 0xC00000C0
    CANCELLED = 0xC0000120
    INVALID_DEVICE_STATE = 0xC0000184
    IO_DEVICE_ERROR = 0xC0000185


class SrbStatus(enum.IntEnum):
    """How a SCSI request ended, in the terms of the host adapter."""

    PENDING = 0
    SUCCESS = 1
    ABORTED = 2
    ERROR = 4
    BUSY = 5
    INVALID_REQUEST = 6
    NO_DEVICE = 8
    TIMEOUT = 9
    SELECTION_TIMEOUT = 0xA
    COMMAND_TIMEOUT = 0xB
    BUS_RESET = 0xE
    DATA_OVERRUN = 0x12
    BAD_SRB_LENGTH = 0x15
    INVALID_LUN = 0x20
    INVALID_TARGET = 0x21
    BAD_FUNCTION = 0x22
    INTERNAL_ERROR = 0x30


AUTOSENSE_VALID: Final = 0x80
"""Added to an SRB status: the sense bytes hold sense data."""

_NT_STATUS: Final = {
    SrbStatus.SUCCESS: NtStatus.SUCCESS,
    SrbStatus.BUSY: NtStatus.DEVICE_BUSY,
    SrbStatus.INVALID_LUN: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.INVALID_TARGET: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.NO_DEVICE: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.COMMAND_TIMEOUT: NtStatus.IO_TIMEOUT,
    SrbStatus.TIMEOUT: NtStatus.IO_TIMEOUT,
    SrbStatus.SELECTION_TIMEOUT: NtStatus.DEVICE_NOT_CONNECTED,
    SrbStatus.BAD_FUNCTION: NtStatus.INVALID_DEVICE_REQUEST,
    SrbStatus.BAD_SRB_LENGTH: NtStatus.INVALID_DEVICE_REQUEST,
    SrbStatus.DATA_OVERRUN: NtStatus.DATA_OVERRUN,
    SrbStatus.ABORTED: NtStatus.CANCELLED,
}


def nt_status(srb_status: SrbStatus) -> NtStatus:
    """Return the status that the packet header shows for an SRB status."""
    return _NT_STATUS.get(srb_status, NtStatus.IO_DEVICE_ERROR)


_SUCCESS: Final = SrbStatus.SUCCESS
_NO_SENSE: Final = bytes(20)


class Direction(enum.IntEnum):
    """Which way a SCSI request's data go."""

    OUT = 0
    IN = 1
    NONE = 2


class VstorPacket(NamedTuple):
    """One message: a header of 12 bytes and what belongs to the operation."""

    operation: int
    flags: int = 0
    status: int = 0
    body: bytes = b""

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Take a ring payload apart; WireError when it has no whole header."""
        if len(payload) < HEADER_SIZE:
            raise WireError(f"a vstor packet of {len(payload)} bytes has no header")
        operation, flags, status = _HEADER.unpack_from(payload)
        return cls(operation, flags, status, payload[HEADER_SIZE:])

    def pack(self, size: int) -> bytes:
        """Return the packet cut or padded with zeros to ``size`` bytes."""
        return (_HEADER.pack(self.operation, self.flags, self.status) + self.body).ljust(size, b"\0")[:size]


_COMPLETE_IO: Final = 1


def reply_size(request_size: int) -> int:
    """Return the payload bytes of the completion of a request whose payload, as seen in the ring, has ``request_size``."""
    return HEADER_SIZE + min(request_size - HEADER_SIZE, REQUEST_V2_SIZE)


def complete(request_size: int, status: int, body: bytes = b"") -> bytes:
    """Return a completion: COMPLETE_IO with ``status``."""
    size = reply_size(request_size)
    return (_HEADER.pack(_COMPLETE_IO, 0, status) + body).ljust(size, b"\0")[:size]


class ScsiRequest(NamedTuple):
    """The body of EXECUTE_SRB (``cdb`` holds the command) and of its completion (the same 20 bytes hold sense data).

    The fields are in the order of the wire.
    """

    length: int = REQUEST_V2_SIZE
    srb_status: int = 0
    scsi_status: int = 0
    port: int = 0
    path: int = 0
    target: int = 0
    lun: int = 0
    cdb_length: int = 0
    sense_length: int = SENSE_SIZE
    direction: int = Direction.NONE
    reserved: int = 0
    transfer_length: int = 0
    cdb: bytes = b""
    tail: bytes = b""
    """What a longer packet has beyond version 1: queue tag and action, SRB flags, timeout, sort key. The host uses none of it."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Take the body of EXECUTE_SRB apart; WireError when it is shorter than version 1."""
        _check_request(data, 0)
        return cls._make((*_REQUEST.unpack_from(data), data[REQUEST_V1_SIZE:REQUEST_V2_SIZE]))

    def pack(self) -> bytes:
        """Return the body: 36 bytes and the tail."""
        return _REQUEST.pack(*self[:-1]) + self.tail


@final
class Srb:
    """A SCSI request as it lies in the payload of EXECUTE_SRB: no field is more than looked at. Ends by :meth:`complete`."""

    __slots__ = ("_at", "_payload")

    def __init__(self, payload: bytes, at: int = HEADER_SIZE) -> None:
        """``at`` is where the body begins; WireError when it is shorter than version 1."""
        _check_request(payload, at)
        self._payload = payload
        self._at: i64 = at

    @property
    def body(self) -> ScsiRequest:
        """All fields."""
        return ScsiRequest.parse(self._payload[self._at :])

    @property
    def path(self) -> int:
        return self._payload[self._at + 5]

    @property
    def target(self) -> int:
        return self._payload[self._at + 6]

    @property
    def lun(self) -> int:
        return self._payload[self._at + 7]

    @property
    def cdb_length(self) -> int:
        return self._payload[self._at + 8]

    @property
    def direction(self) -> int:
        return self._payload[self._at + 10]

    @property
    def transfer_length(self) -> int:
        return int(i64(read_i32_le(self._payload, self._at + 12)) & 0xFFFFFFFF)

    @property
    def operation(self) -> int:
        return self._payload[self._at + 16]

    @property
    def cdb(self) -> bytes:
        """The command itself, as long as the guest says it is."""
        at = self._at + 16
        return self._payload[at : at + self._payload[self._at + 8]]

    def complete(self, srb_status: SrbStatus, scsi_status: int, transferred: int, sense: bytes = b"") -> bytes:
        """Return the completion, header and all, as long as the request (:func:`reply_size`).

        Sense data are handed over if the guest left room for them.
        """
        payload, at = self._payload, self._at
        status: i64 = 1
        nt: i64 = 0
        if srb_status is not _SUCCESS:
            status, nt = int(srb_status), int(nt_status(srb_status))
        room = min(payload[at + 9], SENSE_SIZE) if sense else 0
        if room:
            status |= AUTOSENSE_VALID
        writer = BytesWriter()
        write_i64_le(writer, _COMPLETE_IO)
        write_i64_le(writer, nt | (i64(read_i16_le(payload, at)) & 0xFFFF) << 32 | status << 48 | i64(scsi_status) << 56)
        write_i32_le(writer, read_i32_le(payload, at + 4))  # where the LUN is
        write_i32_le(writer, i32(CDB_SIZE | room << 8 | payload[at + 10] << 16))
        write_i32_le(writer, i32(transferred))
        writer.write(sense[:room].ljust(SENSE_SIZE, b"\0") if room else _NO_SENSE)
        writer.write(payload[at + REQUEST_V1_SIZE : at + REQUEST_V2_SIZE])
        return writer.getvalue()


def _check_request(data: bytes, at: int) -> None:
    if len(data) < at + REQUEST_V1_SIZE:
        raise WireError(f"a SCSI request of {len(data) - at} bytes is shorter than {REQUEST_V1_SIZE}")


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class ChannelProperties:
    """What QUERY_PROPERTIES tells; 24 bytes."""

    max_transfer_bytes: int
    max_sub_channels: int = 0
    flags: int = 0
    """1: multi-channel."""

    def pack(self) -> bytes:
        """Return the body of the completion."""
        return _PROPERTIES.pack(0, self.max_sub_channels, 0, self.flags, self.max_transfer_bytes, 0)

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Take the body of a completion apart, as a guest does."""
        if len(body) < _PROPERTIES.size:
            raise WireError(f"channel properties of {len(body)} bytes are shorter than {_PROPERTIES.size}")
        _, sub_channels, _, flags, transfer, _ = _PROPERTIES.unpack_from(body)
        return cls(transfer, sub_channels, flags)


def ide_instance(channel: int, device: int) -> UUID:
    """Return the instance GUID of the IDE accelerator beside drive ``device`` of the emulated ``channel``."""
    return UUID(fields=(channel, device, 0x8899, 0, 0, 0))


def ide_user_data(channel: int, device: int) -> bytes:
    """Return the offer's user data of an IDE accelerator."""
    return _IDE_USER_DATA.pack(0, channel, device, 0, 2)
