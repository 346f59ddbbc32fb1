"""VMBus of one machine: SynIC and hypercalls on one side, the connection in the middle, channels and their servers behind.

The other side is what Linux has in drivers/hv (vmbus_drv.c, connection.c, channel_mgmt.c). Messages come in by HvPostMessage and go
out through SINT slots with EOM back-pressure: when more than a few replies wait because the guest does not take them, its posts get
INSUFFICIENT_BUFFERS. Signals come in by HvSignalEvent and go out as event flags.

The invariant: a server is told ``opened`` and ``closed`` in turns, and after ``closed`` its rings are not touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mypy_extensions import mypyc_attr

from avmm.clock import Timer
from avmm.devices.device import Board, Device
from avmm.hypervisor.hyperv.hypercall import Connections, Status
from avmm.hypervisor.hyperv.hyperv import HyperV
from avmm.hypervisor.hyperv.synic import Synic
from avmm.hypervisor.partition import RunState
from avmm.vmbus import connection_state
from avmm.vmbus.channel import Channel, ChannelState, OpenRequest
from avmm.vmbus.connection import (
    LEGACY_MESSAGES,
    MESSAGES,
    Action,
    ChannelRecord,
    Close,
    Connection,
    Dropped,
    Open,
    Retarget,
    Send,
)
from avmm.vmbus.connection_state import ConnectionState
from avmm.vmbus.ring import RingError
from avmm.vmbus.server import AnsweringServer, ChannelServer, SavedServer
from avmm.vmbus.wire import HEADER, NEVER_INTERRUPT, InitiateContact, Version
from avmm.vmbus.worker import Worker

CHANNEL_MESSAGE = 1
"""The SynIC message type of VMBus control messages."""
WAITING_REPLIES = 16
"""Messages that may wait for the guest before its own are refused."""


_SUCCESS: Final = Status.SUCCESS
_NEVER: Final = NEVER_INTERRUPT  # of an imported name the module's table would be asked each time


class _Target:
    """Whom a channel interrupts: a SINT of a virtual processor, by the event flag with the channel's number."""

    __slots__ = ("flag", "sint", "synic", "vp")

    def __init__(self, synic: Synic, sint: int, flag: int, vp: int) -> None:
        self.synic = synic
        self.sint = sint
        self.flag = flag
        self.vp = vp

    def interrupt(self) -> None:
        if self.vp != _NEVER:
            self.synic.signal(self.sint, self.flag)


class _OpenChannel:
    """A channel with its worker, what the guest signals, and whom it interrupts."""

    __slots__ = ("channel", "connection_id", "target", "worker")

    def __init__(self, channel: Channel, worker: Worker, connection_id: int, target: _Target) -> None:
        self.channel = channel
        self.worker = worker
        self.connection_id = connection_id
        self.target = target


@dataclass(frozen=True, slots=True)
@mypyc_attr(native_class=False)
class OpenState:
    """An open channel: its end, its server's state, whether the ring is to be looked at, and whom it interrupts."""

    channel_id: int
    target_vp: int
    rung: bool
    end: ChannelState
    server: Any


@dataclass(frozen=True)
@mypyc_attr(native_class=False)
class State:
    """A saved bus. What is offered is not state; how a guest knows it is."""

    connection: ConnectionState
    open: tuple[OpenState, ...]
    version: int = 2


class VmBus(Device):
    """The bus. ``attention()`` gives the event loop its turn soon; ``fail(error)`` stops the machine over a bug of ours."""

    name = "vmbus"

    def __init__(
        self, board: Board, hyperv: HyperV, fail: Callable[[Exception], None], attention: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(board)
        self.hyperv = hyperv
        self.connection = Connection(board.memory.size // 4096)
        self._fail = fail
        self._attention = attention
        self._servers: dict[int, ChannelServer] = {}  # by channel id, as long as the connection has the channel
        self._open: dict[int, _OpenChannel] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._held = False
        hyperv.connections = Connections(self._post_message, self._signal_event)

    # -- for VM-H

    def offer(self, server: ChannelServer) -> None:
        """Offer a channel, before the machine starts or at any time later (hot add)."""
        record = self.connection.offer(server.offer)
        self._servers[record.channel_id] = server
        self._act()

    def rescind(self, server: ChannelServer) -> None:
        """Take a channel away: it is closed at once, and the guest is told. ValueError when it is not offered."""
        for number, one in list(self._servers.items()):
            record = self.connection.channels.get(number)
            if one is server and record is not None:
                if isinstance(server, AnsweringServer):
                    server.retire()
                self.connection.rescind(record)
                self._act()
                self._servers.pop(number, None)
                return
        raise ValueError(f"{server.offer.name} is not offered on this bus")

    @property
    def version(self) -> Version | None:
        """The version spoken with the guest, None while it is not connected."""
        return self.connection.version

    @property
    def connected(self) -> bool:
        """Whether a guest is connected."""
        return self.connection.version is not None

    def channel(self, server: ChannelServer) -> Channel | None:
        """Return the server's channel while it is open."""
        for number, one in self._servers.items():
            if one is server and number in self._open:
                return self._open[number].channel
        return None

    def machine_state(self, state: RunState) -> None:
        """The machine's state changed: channels are closed when it ends."""
        if state.ended:
            self.reset()

    def hold(self, held: bool) -> None:
        """Channels stand still while the machine does."""
        self._held = held
        for one in self._open.values():
            one.worker.hold(held)

    async def close(self) -> None:
        """End all channels and wait for their tasks."""
        self.reset()
        await asyncio.gather(*self._ending, return_exceptions=True)
        self._ending.clear()

    def reset(self) -> None:
        """The machine is reset: the guest's connection is gone. What is offered stays."""
        self.connection.reset()
        self._act()

    # -- saved state

    def deadlines(self) -> list[Timer]:
        timers = []
        for number, one in sorted(self._open.items()):
            server = self._servers.get(number)
            timers += [one.worker.timer] if one.worker.timer is not None else []
            timers += server.deadlines() if isinstance(server, SavedServer) else []
        return timers

    def save(self) -> State:
        return State(connection_state.save(self.connection), tuple(self._save_channel(*one) for one in sorted(self._open.items())))

    def _save_channel(self, number: int, one: _OpenChannel) -> OpenState:
        server = self._servers[number]
        if not isinstance(server, SavedServer):
            raise ValueError(f"a guest has opened the channel {server.offer.name}, whose server has no saved state")
        return OpenState(number, one.target.vp, one.worker.rung, one.channel.save(), server.save_channel())

    def restore(self, state: Any) -> None:
        """Go on from a saved state; channels stand still until the machine goes on."""
        if not isinstance(state, State) or state.version != 2:
            raise ValueError("not a saved state of VMBus")
        self.reset()
        self._held = True
        connection = self.connection
        offered = {connection.channels[number].offer: server for number, server in self._servers.items()}
        connection_state.restore(connection, state.connection)
        self._servers = {number: offered[record.offer] for number, record in connection.channels.items() if record.offer in offered}
        if [one.channel_id for one in state.open] != sorted(n for n, record in connection.channels.items() if record.ring is not None):
            raise ValueError("other channels are saved than the guest has open")
        for one in state.open:
            self._reopen(one)

    def _reopen(self, saved: OpenState) -> None:
        record, server = self.connection.channels[saved.channel_id], self._servers[saved.channel_id]
        message, ring = record.open_message, record.ring
        assert message is not None
        assert ring is not None
        if not isinstance(server, SavedServer):
            raise ValueError(f"the server of {record.offer.name} cannot go on from a saved state")
        pfns = ring.ranges[0].pfns
        one = self._attach(record, Open(record, pfns, message.downstream_page, saved.target_vp, message.user_data), saved.end)
        server.restore_channel(one.channel, saved.server)
        if saved.rung:
            one.worker.ring()

    # -- from the guest

    def _post_message(self, connection: int, kind: int, payload: bytes) -> Status:
        if connection not in (LEGACY_MESSAGES, MESSAGES):
            return Status.INVALID_CONNECTION_ID
        synic = self.hyperv.synic
        sint = self.connection.sint
        if payload[: HEADER.size] == HEADER.pack(InitiateContact.TYPE, 0):
            synic.forget(sint, CHANNEL_MESSAGE)  # for whoever spoke before
        elif synic.depth(sint) >= WAITING_REPLIES:
            return Status.INSUFFICIENT_BUFFERS
        if kind != CHANNEL_MESSAGE:
            self.board.trace("vmbus message dropped", reason=f"SynIC message type {kind:#x}")
            return Status.SUCCESS
        self.connection.handle(payload)
        self._act()
        return Status.SUCCESS

    def _signal_event(self, connection: int, flag: int) -> Status:
        one = self._open.get(connection & 0xFFF)
        if one is None or one.connection_id != connection or flag:
            return self._signal_nobody(connection, flag)
        channel = one.channel
        channel.stats.signals += 1
        if channel.watcher is not None:
            channel.watcher("signal", 0, 0)
        if not one.worker.attend():
            self._attention()
        return _SUCCESS

    def _signal_nobody(self, connection: int, flag: int) -> Status:
        record = self.connection.channels.get(connection & 0xFFF)
        if record is None or not record.known or record.connection_id != connection:
            return Status.INVALID_CONNECTION_ID
        return Status.INVALID_PORT_ID if flag else Status.SUCCESS

    # -- what the connection wants done

    def _act(self) -> None:
        while actions := self.connection.take():
            for action in actions:
                self._do(action)
        for number in [number for number in self._servers if number not in self.connection.channels]:
            del self._servers[number]

    def _do(self, action: Action) -> None:
        match action:
            case Send(message):
                self.hyperv.synic.post(self.connection.sint, CHANNEL_MESSAGE, message.pack())
            case Open(record):
                self.connection.opened(record, self._connect(record, action))
            case Close(record):
                self._disconnect(record.channel_id)
            case Retarget(record, target_vp):
                if record.channel_id in self._open:
                    self._open[record.channel_id].target.vp = target_vp
            case Dropped(reason):
                self.board.trace("vmbus message dropped", reason=reason)

    def _connect(self, record: ChannelRecord, request: Open) -> bool:
        try:
            one = self._attach(record, request)
        except RingError as error:
            self.board.trace("vmbus channel not opened", channel=record.offer.name, reason=str(error))
            return False
        self._servers[record.channel_id].opened(one.channel)
        one.worker.ring()  # the guest may have written before
        return True

    def _attach(self, record: ChannelRecord, request: Open, saved: ChannelState | None = None) -> _OpenChannel:
        """Connect the rings, as they are or as they were saved, with a worker that looks at them."""
        number = record.channel_id
        target = _Target(self.hyperv.synic, self.connection.sint, number, request.target_vp)
        worker = Worker(f"vmbus:{record.offer.name}", self.clock, self._fail)
        channel = Channel(
            self.board, self._servers[number], OpenRequest(number, request.pfns, request.downstream_page, request.user_data),
            interrupt=target.interrupt, again=worker.ring, ended=lambda reason: self._disconnect(number), saved=saved,
        )  # fmt: skip
        worker.start(channel.service)
        one = self._open[number] = _OpenChannel(channel, worker, record.connection_id, target)
        worker.hold(self._held)
        return one

    def _disconnect(self, number: int) -> None:
        one = self._open.pop(number, None)
        if one is not None:
            one.worker.close()
            if one.worker.task is not None:
                self._ending.add(one.worker.task)
                one.worker.task.add_done_callback(self._ending.discard)
            one.channel.close()
