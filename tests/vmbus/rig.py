"""A machine's bus with a guest's driver on the other side, both over one memory, and servers to offer."""

from __future__ import annotations

from uuid import UUID

from avmm.vmbus.bus import VmBus
from avmm.vmbus.client import GuestClient
from avmm.vmbus.packets import Packet, PacketKind
from avmm.vmbus.server import ChannelEnd, Offer
from tests.hypervisor.hyperv.rig import Rig

INTERFACE = UUID("11111111-2222-3333-4444-555555555555")


def instance(number: int) -> UUID:
    """Return an instance GUID."""
    return UUID(int=0x66666666777788889999AAAAAAAA0000 + number)


class Recorder:
    """A server that keeps what it hears; with ``echo`` it completes each packet with its payload."""

    def __init__(self, number: int = 1, *, echo: bool = True) -> None:
        self.offer = Offer(INTERFACE, instance(number), b"user data", name=f"test{number}")
        self.echo = echo
        self.channel: ChannelEnd | None = None
        self.packets: list[Packet] = []
        self.events: list[str] = []

    def opened(self, channel: ChannelEnd) -> None:
        self.channel = channel
        self.events.append("opened")

    def received(self, packet: Packet) -> None:
        self.packets.append(packet)
        if self.echo and packet.completion_requested:
            assert self.channel is not None
            assert self.channel.send(PacketKind.COMPLETION, packet.payload, packet.transaction_id)

    def retire(self) -> None:
        self.events.append("retired")

    def closed(self) -> None:
        self.events.append("closed")


class BusRig(Rig):
    """The enlightened interface with a bus and a client. ``settle`` lets the host's timers fire."""

    def __init__(self, *servers: Recorder, ram: int = 8 << 20) -> None:
        super().__init__(ram)
        self.failures: list[Exception] = []
        self.bus = VmBus(self.bench, self.hyperv, self.failures.append)
        for server in servers:
            self.bus.offer(server)
        self.client = GuestClient(self.memory, self)

    def settle(self, ns: int = 10_000) -> None:
        self.bench.pass_time(ns)

    def connect(self, version: int = 0x50003) -> GuestClient:
        """Contact and ask for offers."""
        assert self.client.contact(version)
        self.client.request_offers()
        return self.client

    def reasons(self, event: str) -> list[object]:
        """Return the reasons given in traces of one name."""
        return [fields.get("reason") for name, fields in self.bench.events if name == event]
