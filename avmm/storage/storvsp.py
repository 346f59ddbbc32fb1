"""The StorVSP protocol from the host's side: initialization, and what each packet asks for. No I/O, no ring, no disk.

As Linux' guest driver speaks it (drivers/scsi/storvsc_drv.c). A packet goes into :meth:`StorVsp.receive`; out comes what is to be
done: send this reply, run this SCSI request, abort everything and then send this reply. Errors that a guest can recover from are
replies with an NTSTATUS; what no driver does is a ProtocolError, on which the channel ends.

The invariant: SCSI requests come out only in READY, which is reached only through all four steps of initialization.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from librt.strings import read_i32_le
from mypy_extensions import mypyc_attr

from avmm.storage import wire
from avmm.storage.scsi_pages import MAX_TRANSFER
from avmm.storage.wire import NtStatus, Operation, Srb, Version, VstorPacket


class Phase(enum.Enum):
    """What the guest has to send next."""

    BEGIN = "begin initialization"
    VERSION = "query protocol version"
    PROPERTIES = "query properties"
    END = "end initialization"
    READY = "ready"


class ProtocolError(Exception):
    """The guest sent what no driver sends; one clause says what."""


class Reply(NamedTuple):
    """Send this completion."""

    payload: bytes


class Reset(NamedTuple):
    """Abort what is in flight, on one LUN or (None) on all, then send this completion."""

    payload: bytes
    only: tuple[int, int, int] | None = None


Action = Reply | Srb | Reset
"""A SCSI request is to be run, and then its completion is sent, :meth:`Srb.complete`."""


@dataclass(frozen=True)
@mypyc_attr(native_class=False)
class StorVspState:
    """What has been negotiated."""

    version: int = 1
    phase: Phase = Phase.BEGIN
    protocol: int = 0


class StorVsp:
    """One channel's protocol state; make a new one each time the channel is opened."""

    def __init__(self, *, max_transfer: int = MAX_TRANSFER, sub_channels: int = 0, versions: frozenset[int] = frozenset(Version)) -> None:
        self.max_transfer = max_transfer
        self.sub_channels = sub_channels
        self.versions = versions
        self.phase = Phase.BEGIN
        self.version = 0
        """The protocol version in force, 0 before one was agreed on."""

    @property
    def ready(self) -> bool:
        """Whether SCSI requests are taken."""
        return self.phase is Phase.READY

    def receive(self, payload: bytes, completion_requested: bool) -> Action:
        """Take one packet's payload. Raises ProtocolError."""
        if not completion_requested:
            raise ProtocolError("a packet that wants no completion")
        try:
            if len(payload) >= _HEADER_SIZE and read_i32_le(payload, 0) == _EXECUTE_SRB:
                return Srb(payload) if self.phase is _READY else self._too_early(payload)
            packet = VstorPacket.parse(payload)
            if packet.operation in _RESETS:
                return self._reset(packet, len(payload))
        except wire.WireError as error:
            raise ProtocolError(str(error)) from None
        step = _STEPS.get(packet.operation)
        if step is None:
            raise ProtocolError(f"operation {packet.operation}")
        return Reply(step(self, packet.body, len(payload)))

    def rescan(self) -> bytes | None:
        """Return the payload that makes the guest look for LUNs again, None when it would not understand."""
        if not self.ready or self.version < Version.WIN7:
            return None
        return VstorPacket(Operation.ENUMERATE_BUS).pack(wire.packet_size(self.version))

    def save(self) -> StorVspState:
        """Return what has been negotiated."""
        return StorVspState(phase=self.phase, protocol=self.version)

    def restore(self, state: object) -> None:
        """Continue from what :meth:`save` returned."""
        if not isinstance(state, StorVspState) or state.version != 1:
            raise ValueError("this is not a StorVSP state of version 1")
        self.phase, self.version = state.phase, state.protocol

    # -- requests

    def _too_early(self, payload: bytes) -> Reply:
        return Reply(wire.complete(len(payload), NtStatus.INVALID_DEVICE_STATE, payload[_HEADER_SIZE:]))

    def _reset(self, packet: VstorPacket, size: int) -> Action:
        if not self.ready:
            return Reply(wire.complete(size, NtStatus.INVALID_DEVICE_STATE))
        only = None
        if packet.operation == Operation.RESET_LUN and len(packet.body) >= wire.REQUEST_V1_SIZE:
            request = Srb(packet.body, 0)
            only = (request.path, request.target, request.lun)
        return Reset(wire.complete(size, NtStatus.SUCCESS), only)

    # -- initialization

    def _advance(self, before: Phase, after: Phase, size: int, body: bytes = b"") -> bytes:
        if self.phase is not before:
            return wire.complete(size, NtStatus.INVALID_DEVICE_STATE)
        self.phase = after
        return wire.complete(size, NtStatus.SUCCESS, body)

    def _begin(self, body: bytes, size: int) -> bytes:
        return self._advance(Phase.BEGIN, Phase.VERSION, size)

    def _query_version(self, body: bytes, size: int) -> bytes:
        wanted = int.from_bytes(body[:2], "little")
        if self.phase is Phase.VERSION and wanted not in self.versions:
            return wire.complete(size, NtStatus.REVISION_MISMATCH, body[:4])
        if self.phase is Phase.VERSION:
            self.version = wanted
        return self._advance(Phase.VERSION, Phase.PROPERTIES, size, body[:4])

    def _query_properties(self, body: bytes, size: int) -> bytes:
        flags = 1 if self.sub_channels else 0
        properties = wire.ChannelProperties(self.max_transfer, self.sub_channels, flags)
        return self._advance(Phase.PROPERTIES, Phase.END, size, properties.pack())

    def _end(self, body: bytes, size: int) -> bytes:
        return self._advance(Phase.END, Phase.READY, size)

    def _create_sub_channels(self, body: bytes, size: int) -> bytes:
        if self.phase not in (Phase.END, Phase.READY):
            return wire.complete(size, NtStatus.INVALID_DEVICE_STATE)
        too_many = int.from_bytes(body[:2], "little") > self.sub_channels
        return wire.complete(size, NtStatus.INVALID_PARAMETER if too_many else NtStatus.SUCCESS)

    def _fibre_channel(self, body: bytes, size: int) -> bytes:
        return wire.complete(size, NtStatus.INVALID_DEVICE_REQUEST)  # this is no fibre channel adapter


_READY: Final = Phase.READY
_HEADER_SIZE: Final = wire.HEADER_SIZE
_EXECUTE_SRB: Final = 3
_RESETS: Final = (Operation.RESET_LUN, Operation.RESET_ADAPTER, Operation.RESET_BUS)

_STEPS: Final[dict[int, Callable[[StorVsp, bytes, int], bytes]]] = {
    Operation.BEGIN_INITIALIZATION: StorVsp._begin,
    Operation.QUERY_PROTOCOL_VERSION: StorVsp._query_version,
    Operation.QUERY_PROPERTIES: StorVsp._query_properties,
    Operation.END_INITIALIZATION: StorVsp._end,
    Operation.CREATE_SUB_CHANNELS: StorVsp._create_sub_channels,
    Operation.FCHBA_DATA: StorVsp._fibre_channel,
}
