"""ATA channels as physical devices of a machine: how a channel is built twice, and how its bus master goes along.

The two channels' engines share the bus master's ports, so the ports of a channel's engine are routed with the channel.
"""

from __future__ import annotations

from collections.abc import Iterator

from avmm.control.config import ConfigError
from avmm.control.physical.answer import Answer
from avmm.control.physical.device import PhysicalDevice
from avmm.devices.ata.busmaster import BusMaster
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.drive import AtaDisk, Drive
from avmm.devices.device import Device, PortRange
from avmm.devices.line import InterruptLine
from avmm.hypervisor.bus import Read, Write
from avmm.hypervisor.partition import Partition
from avmm.interpose.ata.driver import AtaDriver, DriverDisk
from avmm.interpose.ata.front import AtaFront, EmulatedCable, EmulatedChannel
from avmm.interpose.ata.handover import AtaHandover
from avmm.interpose.front import Way
from avmm.interpose.interposers.share import SharedDisk
from avmm.interpose.interposers.stack import Interposed, Interposer
from avmm.platform.ata import AtaLink
from avmm.platform.cable import Cable


class PhysicalChannel(PhysicalDevice):
    """One ATA channel that is real hardware to the guest."""

    front: AtaFront

    def __init__(self, partition: Partition, number: int, drives: list[Drive | None]) -> None:
        disks: list[AtaDisk | None] = []
        for drive in drives:
            if drive is not None and not isinstance(drive, AtaDisk):
                raise ConfigError(f"ata{number} cannot be physical: it has a CD-ROM drive, and only disks can be virtualized")
            disks.append(drive)
        if not any(disks):
            raise ConfigError(f"ata{number} cannot be physical: it has no disk")
        physical = AtaLink(Cable(partition), number, disks)
        self.driver = AtaDriver(physical)
        self.disks = {n: DriverDisk(self.driver, n, disk.disk.sectors, disk.disk.read_only) for n, disk in enumerate(disks) if disk}
        self.layers: dict[str, Interposer] = {}
        self.shares: list[SharedDisk] = []
        self._order: list[Interposer] = []
        self.stacks = {n: Interposed(n, disk, self._order) for n, disk in self.disks.items()}
        copies = [
            None if disk is None else AtaDisk(self.stacks[n], disk.serial, disk.model, disk.geometry, disk.multiple_max)
            for n, disk in enumerate(disks)
        ]
        emulated = AtaLink(EmulatedCable(partition), number, copies, EmulatedChannel)
        emulated.irq.connect(None)
        front = AtaFront(partition, physical, emulated, lambda: Answer(partition))
        super().__init__(partition, front, AtaHandover(front, self.driver))
        self.number = number
        self._bus_master: BusMaster | None = None

    @property
    def interposed(self) -> list[str]:
        """The interposers, oldest first."""
        return [*self.layers, *(["share"] if self.shares else [])]

    def close(self) -> None:
        """The machine has ended: nobody reads along any more."""
        self.end_shares()
        for layer in self.layers.values():
            layer.end()

    def share(self, drive: int) -> SharedDisk:
        """Let somebody read along."""
        shared = SharedDisk(self.stacks[drive], f"{self.partition.name}/{self.name}")
        self.shares.append(shared)
        return shared

    def end_shares(self) -> None:
        """Let nobody read along any more."""
        for shared in self.shares:
            shared.close()
        self.shares.clear()

    def add(self, kind: str, layer: Interposer) -> None:
        """Put an interposer on top of the others."""
        self.layers[kind] = layer
        self._order.append(layer)

    def remove(self, kind: str) -> None:
        """Take an interposer out; requests under way still pass it."""
        layer = self.layers[kind]
        layer.close()
        del self.layers[kind]
        self._order.remove(layer)

    def join(self, bus_master: BusMaster) -> None:
        """Be on the buses from now on; the bus master's engine of this channel is the physical one."""
        link = self.front.physical
        link.engine = bus_master.engines[self.number]
        link.join()
        self._bus_master = bus_master
        self.plug()

    def routes(self, way: Way) -> Iterator[tuple[Device, tuple[PortRange, ...], Read, Write]]:
        """The ports of the channel, and those of its bus master."""
        yield from super().routes(way)
        bus_master = self._bus_master
        if bus_master is not None and bus_master.base is not None and bus_master.name in self.partition.devices:
            span = (PortRange(bus_master.base + 8 * self.number, 8, 4),)
            yield bus_master, span, bus_master.read, bus_master.write

    def route(self) -> None:
        """Let the ports be answered, and the bus master be, by who has them now."""
        super().route()
        if self._bus_master is not None:
            self._bus_master.shown[self.number] = self.front.engine


class Ordinary(Cable):
    """The board of an ordinary channel beside a physical one: the partition itself."""

    def __init__(self, partition: Partition) -> None:
        super().__init__(partition)
        self.give_to(guest=True)

    def line(self, number: int) -> InterruptLine:
        """Return the machine's wire."""
        return self.board.line(number)


def make_channels(
    partition: Partition, places: list[list[Drive | None]], names: set[str]
) -> tuple[list[AtaChannel], list[PhysicalChannel]]:
    """Make the two channels, the named ones physical; the others are ordinary, but cannot be moved."""
    channels: list[AtaChannel] = []
    physical: list[PhysicalChannel] = []
    for number, drives in enumerate(places):
        if f"ata{number}" in names:
            physical.append(PhysicalChannel(partition, number, drives))
            channels.append(physical[-1].front.physical.channel)
        else:
            channels.append(AtaChannel(Ordinary(partition), number, drives))
    return channels, physical


def plug_channels(partition: Partition, channels: list[AtaChannel], physical: list[PhysicalChannel], bus_master: BusMaster) -> None:
    """Connect the channels and their bus master to the buses."""
    partition.plug(bus_master)
    by_name = {channel.name: channel for channel in physical}
    for channel in channels:
        if channel.name in by_name:
            by_name[channel.name].join(bus_master)
        else:
            partition.plug(channel)
