"""Storage adapters that VM-H offers over VMBus: a SCSI controller with its LUNs, and the accelerator of an IDE disk.

A controller is one channel. Its packets go through :class:`StorVsp`, SCSI requests to the addressed :class:`ScsiDisk`, and
what has to wait for the medium runs in the background, many at once; each is completed when it is done, in any order. What
has not is moved between the medium and the guest's own pages while the request is received, but in virtual time nothing is.
Completions that become due in one turn of the loop are in the ring together before the guest runs again, so the ring's
own rule signals once for all of them.

Back-pressure: the channel is told how many requests may be out and how large a reply is, so a request is taken out of the
ring only if its reply fits (``ChannelEnd.limit``). What does not fit nevertheless, waits here and goes first.

The invariant: every request taken from the guest is completed exactly once while the channel is open, and nothing of it
touches guest memory after its completion or after the channel was closed.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from mypy_extensions import mypyc_attr

from avmm.clock import MICROSECOND, Timer, VirtualClock
from avmm.devices.block import journey
from avmm.memory import PAGE, GuestMemory
from avmm.storage import scsi_pages, sense, wire
from avmm.storage.scsi_disk import GOOD, Command, Result, ScsiDisk, Work
from avmm.storage.sense import Sense, SenseKey
from avmm.storage.storvsp import ProtocolError, Reset, StorVsp, StorVspState
from avmm.storage.wire import Direction, ScsiRequest, Srb, SrbStatus
from avmm.vmbus.packets import COMPLETION_REQUESTED, Packet, PacketKind
from avmm.vmbus.ranges import GpaRange, GpaRanges, pack_ranges, unpack_ranges
from avmm.vmbus.server import ENUMERATE_INTERFACE, ChannelEnd, Offer

DEPTH: Final = 256
"""SCSI requests in flight, at most."""
COMMAND_TIME: Final = 20 * MICROSECOND
SECTOR_TIME: Final = 1 * MICROSECOND
"""Machine time of a request in virtual time; the same medium as behind the emulated controller takes the same time."""
TARGETS: Final = 2
PATHS: Final = 8
LUNS: Final = 64

_IN_BAND: Final = PacketKind.IN_BAND
_GPA_DIRECT: Final = PacketKind.GPA_DIRECT
_COMPLETION: Final = PacketKind.COMPLETION
_OUT: Final = int(Direction.OUT)
_NONE: Final = int(Direction.NONE)
_SUCCESS: Final = SrbStatus.SUCCESS
_REPORT_LUNS: Final = 0xA0

Address = tuple[int, int, int]
"""Path, target, LUN."""


@dataclass(slots=True)
class ScsiStats:
    """What a controller did so far."""

    requests: int = 0
    errors: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    most_in_flight: int = 0


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class SavedRequest:
    """A request in flight of which the medium has done its part: in virtual time its end is still to come."""

    request: ScsiRequest
    transaction_id: int
    ranges: tuple[GpaRange, ...]
    result: Result


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class ScsiState:
    """Saved state of an open channel. ``attentions`` are those of each disk, by its place."""

    protocol: StorVspState
    attentions: tuple[tuple[Address, tuple[Sense, ...]], ...]
    in_flight: tuple[SavedRequest, ...]
    waiting: tuple[tuple[bytes, int], ...]
    rescan_wanted: bool
    version: int = 1


class _Exchange:
    """A request in flight. It is taken out of the controller's table when it is completed; what comes later is dropped."""

    __slots__ = ("packet", "request", "result", "timer")

    def __init__(self, request: Srb, packet: Packet) -> None:
        self.request = request
        self.packet = packet
        self.result: Result | None = None
        """What the medium said, when it has."""
        self.timer: Timer | None = None
        """In virtual time, when that will be known."""


class ScsiController:
    """A StorVSC channel with LUNs. Implements ``ChannelServer``; LUNs may come and go while the guest runs."""

    def __init__(self, instance: UUID, luns: Iterable[ScsiDisk] = (), *, name: str = "scsi", depth: int = DEPTH) -> None:
        self.name = name
        self.luns: dict[Address, ScsiDisk] = {(0, 0, number): disk for number, disk in enumerate(luns)}
        self.stats = ScsiStats()
        self.depth = depth
        self._offer = Offer(wire.SCSI_INTERFACE, instance, bytes(120), ENUMERATE_INTERFACE, name=name)
        self._channel: ChannelEnd | None = None
        self._memory = GuestMemory(memoryview(b""))  # of the channel that is open
        self._prompt = False
        self._protocol = StorVsp()
        self._largest = 0
        self._in_flight: dict[_Exchange, None] = {}  # in the order they came
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._rescan_wanted = False
        self.on_idle: Callable[[], None] | None = None
        """Called whenever the last request in flight has been completed."""

    # -- what the host does

    def add_lun(self, disk: ScsiDisk, lun: int | None = None, *, path: int = 0, target: int = 0) -> int:
        """Plug a disk in, at the first free LUN if none is named, and tell the guest to look. ValueError if it is taken."""
        if lun is None:
            lun = next((n for n in range(LUNS) if (path, target, n) not in self.luns), LUNS)
        if not (0 <= path < PATHS and 0 <= target < TARGETS and 0 <= lun < LUNS):
            raise ValueError(f"there is no place {path}:{target}:{lun} on {self.name}")
        if (path, target, lun) in self.luns:
            raise ValueError(f"{self.name} has a disk at {path}:{target}:{lun} already")
        self.luns[path, target, lun] = disk
        self._ask_rescan()
        return lun

    def remove_lun(self, lun: int, *, path: int = 0, target: int = 0) -> ScsiDisk:
        """Pull a disk out and tell the guest to look; what is in flight is still completed. KeyError if there is none."""
        disk = self.luns.pop((path, target, lun))
        self._ask_rescan()
        return disk

    @property
    def in_flight(self) -> int:
        """Requests that wait for a medium."""
        return len(self._in_flight)

    @property
    def ready(self) -> bool:
        """Whether a guest's driver has initialized the controller."""
        return self._channel is not None and self._protocol.ready

    @property
    def protocol_version(self) -> int:
        """The protocol version that the guest's driver negotiated, 0 when there is none."""
        return self._protocol.version if self._channel is not None else 0

    # -- ChannelServer

    @property
    def offer(self) -> Offer:
        """What the guest is told of the channel."""
        return self._offer

    def opened(self, channel: ChannelEnd) -> None:
        """The guest's driver came: it has to initialize the controller."""
        self.closed()
        self._channel = channel
        self._memory = channel.memory
        self._prompt = not isinstance(channel.board.clock, VirtualClock)
        self._protocol = StorVsp()
        self._largest = self._protocol.max_transfer
        channel.limit(self.depth, wire.PACKET_V2_SIZE)
        channel.on_room = self._room

    def closed(self) -> None:
        """The guest's driver went: what is in flight goes on to the medium, and nobody hears of it."""
        self._channel = None
        for exchange in [*self._in_flight]:
            self._give_up(exchange)
        self._waiting.clear()
        self._rescan_wanted = False

    def retire(self) -> None:
        """The controller goes: whoever waits for one of its disks hears that there is none."""
        self._abort(None, SrbStatus.INVALID_LUN)

    def received(self, packet: Packet) -> None:
        """One packet came in."""
        channel = self._channel
        if channel is None:
            return
        try:
            kind = packet.kind
            if kind is not _GPA_DIRECT and kind is not _IN_BAND:
                raise ProtocolError(f"a packet of type {kind}")
            action = self._protocol.receive(packet.payload, packet.flags & COMPLETION_REQUESTED != 0)
        except ProtocolError as error:
            channel.fail(f"{self.name}: {error}")
            return
        if isinstance(action, Srb):
            self._execute(channel, action, packet)
            return
        if isinstance(action, Reset):
            self._abort(action.only)
        self._send(channel, action.payload, packet.transaction_id)
        if self._rescan_wanted:
            self._ask_rescan()

    # -- SCSI requests

    def _execute(self, channel: ChannelEnd, request: Srb, packet: Packet) -> None:
        self.stats.requests += 1
        direction, ranges = request.direction, packet.ranges
        length = request.transfer_length if direction != _NONE else 0
        if direction > _NONE or request.cdb_length > wire.CDB_SIZE or length > self._largest or length > ranges.byte_count:
            self._refuse(channel, request, packet)
            return
        cdb = request.cdb
        disk = self._find(request.path, request.target, request.lun)
        if disk is None or (cdb and cdb[0] == _REPORT_LUNS):
            self._for_nobody(request, packet, cdb, present=disk is not None)
            return
        memory, out = self._memory, direction == _OUT
        if length and self._prompt and (pieces := ranges.pieces(memory, length)) is not None:
            done = disk.at_once(cdb, pieces, length, out=out, id=packet.request_id)
            if done is GOOD:
                if out:
                    self.stats.bytes_written += length
                else:
                    self.stats.bytes_read += length
                    memory.changed(pieces.segments())
                self._send(channel, request.complete(_SUCCESS, 0, length), packet.transaction_id)
                return
            if done is not None:
                self._finish(request, packet, done)
                return
        segments = ranges.segments(length) if out else []
        command = Command(cdb, b"".join([memory.read(*one) for one in segments])) if out else Command(cdb, room=length)
        result = disk.execute(command)
        if isinstance(result, Work):
            self._start(channel, request, packet, result)
        else:
            self._finish(request, packet, result)

    def _refuse(self, channel: ChannelEnd, request: Srb, packet: Packet) -> None:
        if request.direction <= _NONE and request.cdb_length <= wire.CDB_SIZE:
            given = packet.ranges.byte_count
            channel.board.trace("storvsp: bad data length", controller=self.name, length=request.transfer_length, given=given)
        self._end(request, packet, SrbStatus.INVALID_REQUEST)

    def _start(self, channel: ChannelEnd, request: Srb, packet: Packet, work: Work) -> None:
        exchange = _Exchange(request, packet)
        self._in_flight[exchange] = None
        self.stats.most_in_flight = max(self.stats.most_in_flight, len(self._in_flight))

        def done(result: Any) -> None:
            if isinstance(result, BaseException):
                raise result  # a bug of ours: the disk turns every fault of the medium into sense data
            if exchange not in self._in_flight:
                return  # aborted, or the channel was closed
            del self._in_flight[exchange]
            self._finish(request, packet, result)
            if not self._in_flight and self.on_idle is not None:
                self.on_idle()

        coroutine = work.coroutine if self._prompt else _noting(exchange, work.coroutine)
        token = journey.set(packet.request_id)
        try:
            exchange.timer = channel.board.start(coroutine, done, COMMAND_TIME + work.sectors * SECTOR_TIME, inline=True)
        finally:
            journey.reset(token)

    def _find(self, path: int, target: int, lun: int) -> ScsiDisk | None:
        return self.luns.get((path, target, lun))

    def _present(self, request: Srb) -> list[int]:
        return [lun for path, target, lun in self.luns if (path, target) == (request.path, request.target)]

    def _for_nobody(self, request: Srb, packet: Packet, cdb: bytes, *, present: bool) -> None:
        """Answer for the target: which LUNs there are, and what a LUN that is not there says."""
        room = request.transfer_length if request.direction == Direction.IN else 0
        if len(cdb) == 12 and cdb[0] == _REPORT_LUNS:
            room = min(room, int.from_bytes(cdb[6:10], "big"))
            self._finish(request, packet, Result(scsi_pages.lun_list(self._present(request))[:room]))
        elif present:
            self._finish(request, packet, Result(sense=sense.INVALID_FIELD))
        elif cdb[:1] == b"\x12" and len(cdb) >= 6 and not cdb[1] & 1:
            room = min(room, int.from_bytes(cdb[3:5], "big"))
            self._finish(request, packet, Result(scsi_pages.absent_inquiry()[:room]))
        else:
            # Linux removes LUN 0:target:lun when it reads INVALID_LUN, whatever the path: only path 0 may say it.
            status = SrbStatus.INVALID_LUN if request.path == 0 else SrbStatus.ERROR
            self._end(request, packet, status, Result(sense=sense.NO_SUCH_LUN))

    # -- completions

    def _finish(self, request: Srb, packet: Packet, result: Result) -> None:
        """Complete a request with what the disk said; data go to the guest's memory first."""
        channel = self._channel
        if channel is None:
            return
        stats = self.stats
        data, why, taken = result
        if data:
            packet.ranges.write(self._memory, data)
            stats.bytes_read += len(data)
        else:
            stats.bytes_written += taken
        if why is None:
            self._send(channel, request.complete(_SUCCESS, 0, len(data) or taken), packet.transaction_id)
            return
        channel.board.trace("scsi error", controller=self.name, lun=request.lun, op=request.operation, key=why.key, asc=why.asc)
        self._end(request, packet, SrbStatus.INVALID_REQUEST if why.key is SenseKey.ILLEGAL_REQUEST else SrbStatus.ERROR, result)

    def _end(self, request: Srb, packet: Packet, status: SrbStatus, result: Result = GOOD) -> None:
        """Complete a request that did not succeed."""
        self.stats.errors += 1
        why = result.sense.pack() if result.sense is not None else b""
        if self._channel is not None:
            self._send(self._channel, request.complete(status, result.status, result.moved, why), packet.transaction_id)

    def _abort(self, only: Address | None, status: SrbStatus = SrbStatus.ABORTED) -> None:
        """Complete everything in flight, or what is in flight for one LUN, as aborted."""
        aborted = Result(sense=sense.ABORTED)
        for exchange in [*self._in_flight]:
            request = exchange.request
            if only is None or (request.path, request.target, request.lun) == only:
                self._give_up(exchange)
                self._end(request, exchange.packet, status, aborted)

    def _give_up(self, exchange: _Exchange) -> None:
        """Have nobody hear of a request's end."""
        del self._in_flight[exchange]
        if exchange.timer is not None:
            exchange.timer.cancel()

    def _send(self, channel: ChannelEnd, payload: bytes, transaction_id: int) -> None:
        if self._waiting or not channel.send(_COMPLETION, payload, transaction_id):
            self._waiting.append((payload, transaction_id))

    def _room(self) -> None:
        """The guest made room in its ring."""
        channel, waiting = self._channel, self._waiting
        if channel is None:
            return
        while waiting and channel.send(PacketKind.COMPLETION, *waiting[0]):
            waiting.popleft()
        if self._rescan_wanted and not waiting:
            self._ask_rescan()

    def _ask_rescan(self) -> None:
        """Have the guest look for LUNs; until there is room in the ring, or a driver that listens, the wish is kept."""
        payload = self._protocol.rescan() if self._channel is not None else None
        if self._channel is None or (payload is None and self._protocol.ready):
            self._rescan_wanted = False  # whoever comes will look, or cannot be told
            return
        sent = payload is not None and not self._waiting and self._channel.send(PacketKind.IN_BAND, payload, 0)
        self._rescan_wanted = not sent


    # -- saved state

    def deadlines(self) -> list[Timer]:
        """Return the timers of the requests in flight, in the order they came."""
        return [exchange.timer for exchange in self._in_flight if exchange.timer is not None]

    def save_channel(self) -> ScsiState:
        """Return the state. ValueError when the medium is at work."""
        attentions = tuple((address, tuple(disk.attention)) for address, disk in sorted(self.luns.items()))
        in_flight = tuple(_saved(exchange) for exchange in self._in_flight)
        return ScsiState(self._protocol.save(), attentions, in_flight, tuple(self._waiting), self._rescan_wanted)

    def restore_channel(self, channel: ChannelEnd, state: Any) -> None:
        """Go on from a saved state; what was in flight ends with what the medium said then, and is not done again."""
        if not isinstance(state, ScsiState) or state.version != 1:
            raise ValueError(f"not a saved state of {self.name}")
        if [address for address, _ in state.attentions] != sorted(self.luns):
            raise ValueError(f"the guest knew other disks on {self.name} than this machine has")
        if len(state.in_flight) > self.depth or len(state.waiting) > self.depth:
            raise ValueError(f"more requests in flight than {self.name} takes")
        self.opened(channel)
        self._protocol.restore(state.protocol)
        for address, attention in state.attentions:
            self.luns[address].attention = list(attention)
        for saved in state.in_flight:
            self._resume(channel, saved)
        self._waiting.extend(state.waiting)
        self._rescan_wanted = state.rescan_wanted

    def _resume(self, channel: ChannelEnd, saved: SavedRequest) -> None:
        pages = channel.memory.size // PAGE
        if not isinstance(saved.request, ScsiRequest) or not isinstance(saved.result, Result):
            raise ValueError(f"a saved request of {self.name} is none")
        try:
            request = Srb(saved.request.pack(), 0)
        except struct.error as error:
            raise ValueError(f"a saved request of {self.name} is none: {error}") from error
        ranges, _ = unpack_ranges(pack_ranges(list(saved.ranges)), len(saved.ranges), pages)
        if len(saved.result.data) > sum(one.byte_count for one in ranges):
            raise ValueError(f"a saved request of {self.name} has more data than room for them")
        packet = Packet(_GPA_DIRECT, COMPLETION_REQUESTED, saved.transaction_id, b"", GpaRanges(ranges))
        self._start(channel, request, packet, Work(_known(saved.result)))


async def _noting(exchange: _Exchange, work: Coroutine[Any, Any, Result]) -> Result:
    """Do a request's work, and note how it ended for whoever saves it before machine time has come there."""
    exchange.result = await work
    return exchange.result


async def _known(result: Result) -> Result:
    return result


def _saved(exchange: _Exchange) -> SavedRequest:
    if exchange.result is None:
        raise ValueError("a medium is at work")
    result = exchange.result._replace(data=bytes(exchange.result.data))
    return SavedRequest(exchange.request.body, exchange.packet.transaction_id, exchange.packet.ranges.listed, result)


class IdeAccelerator(ScsiController):
    """The enlightened way to one disk of the emulated IDE controller: LUN 0, whatever path and target the guest says."""

    def __init__(self, disk: ScsiDisk, channel: int, device: int, *, name: str = "") -> None:
        instance = wire.ide_instance(channel, device)
        super().__init__(instance, name=name or f"ide{channel}{device}")
        self._offer = Offer(wire.IDE_INTERFACE, instance, wire.ide_user_data(channel, device), ENUMERATE_INTERFACE, name=self.name)
        self.luns = {(channel, device, 0): disk}

    def add_lun(self, disk: ScsiDisk, lun: int | None = None, *, path: int = 0, target: int = 0) -> int:
        """Refuse: an IDE drive has no LUNs."""
        raise ValueError(f"{self.name} is one disk and takes no other")

    def _find(self, path: int, target: int, lun: int) -> ScsiDisk | None:
        return next(iter(self.luns.values()), None) if lun == 0 else None

    def _present(self, request: Srb) -> list[int]:
        return [0] if self.luns else []
