"""Physical devices of a machine, and changing who drives them: what ``vm.virtualize`` and ``vm.devirtualize`` do.

The mechanism is :mod:`avmm.interpose`; this is the machine's side of it: how a channel is built twice, physical and emulated, how the
buses are routed, and how the caller's task waits for a switch that happens in the guest's accesses.

The invariant: one switch of a device at a time; a call returns a report, or raises, exactly once, also when the machine ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from avmm.clock import MILLISECOND, SECOND, VirtualClock
from avmm.control.config import ConfigError
from avmm.devices.ata.busmaster import BusMaster
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.drive import AtaDisk, Drive
from avmm.devices.block import BlockDevice
from avmm.devices.device import PortRange
from avmm.devices.line import InterruptLine
from avmm.hypervisor.partition import Partition, RunState
from avmm.interpose.driver import AtaDriver, DriverDisk
from avmm.interpose.front import EmulatedCable, EmulatedChannel, Front, Way
from avmm.interpose.interposers import FaultLayer, Interposed, Interposer, LimitLayer, MirrorLayer, Rule, SharedDisk, TraceLayer
from avmm.interpose.switch import Plan, Step, Switch, SwitchReport
from avmm.platform.ata import AtaLink, Cable

SLEEP = 0.001
EAGER = 20 * MILLISECOND
"""How long a switch in the middle of a sequence waits for the guest to begin one."""


class VirtualizeError(ValueError):
    """The device cannot be switched now; one sentence says why. Nothing was changed."""


class _Answer:
    """An answer that a vCPU waits for inside its instruction; machine time goes on meanwhile, as it does in HLT."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def set_result(self, value: int) -> None:
        """Give the answer."""
        self._future.set_result(value)

    def done(self) -> bool:
        """Whether nobody waits any more."""
        return self._future.done()

    def __await__(self) -> Generator[Any, Any, int]:
        return self._wait().__await__()

    async def _wait(self) -> int:
        clock = self._partition.clock
        while not self._future.done():
            blocker = clock.run_due()
            if self._future.done():
                break
            due = clock.next_due()
            if blocker is not None:
                await asyncio.shield(blocker)
            elif isinstance(clock, VirtualClock) and due is not None:
                clock.advance_to(due)
                await asyncio.sleep(0)
            else:
                await asyncio.wait([self._future], timeout=0 if due is not None and due - clock.now() < SECOND // 1000 else SLEEP)
        return self._future.result()


class PhysicalChannel:
    """One ATA channel that is real hardware to the guest: the parts that belong together."""

    def __init__(self, partition: Partition, number: int, drives: list[Drive | None]) -> None:
        disks: list[AtaDisk | None] = []
        for drive in drives:
            if drive is not None and not isinstance(drive, AtaDisk):
                raise ConfigError(f"ata{number} cannot be physical: it has a CD-ROM drive, and only disks can be virtualized")
            disks.append(drive)
        if not any(disks):
            raise ConfigError(f"ata{number} cannot be physical: it has no disk")
        self.partition = partition
        physical = AtaLink(Cable(partition), number, disks)
        self.driver = AtaDriver(physical)
        self.disks = {n: DriverDisk(self.driver, n, disk.disk.sectors, disk.disk.read_only) for n, disk in enumerate(disks) if disk}
        self.layers: dict[str, Interposer] = {}
        self._order: list[Interposer] = []
        self.stacks = {n: Interposed(n, disk, self._order) for n, disk in self.disks.items()}
        copies = [
            None if disk is None else AtaDisk(self.stacks[n], disk.serial, disk.model, disk.geometry, disk.multiple_max)
            for n, disk in enumerate(disks)
        ]
        emulated = AtaLink(EmulatedCable(partition), number, copies, EmulatedChannel)
        emulated.irq.connect(None)
        self.front = Front(partition, physical, emulated, lambda: _Answer(partition))
        self.number = number
        self.switch: Switch | None = None

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
        self._bus_master = bus_master
        self.partition.plug(self.front)
        self.front.on_route = self.route
        self.route()

    def route(self) -> None:
        """Let the ports of the channel and of its bus master be answered by who has them now."""
        front, bus_master, ports = self.front, self._bus_master, self.partition.ports
        read, write, direct = front.handlers
        ports.detach(front.ports, front)
        ports.attach(front, front.ports, read, write, direct=direct)
        bus_master.engines[self.number] = front.engine  # type: ignore[assignment]  # as far as a bus master goes
        if bus_master.base is not None and bus_master.name in self.partition.devices:
            span = (PortRange(bus_master.base + 8 * self.number, 8, 4),)
            if ports.owner(span[0].first) == bus_master.name:
                ports.detach(span, bus_master)
                ports.attach(bus_master, span, bus_master.read, bus_master.write, direct=direct)


class PhysicalDevices:
    """The physical devices of one machine, by name."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.channels: dict[str, PhysicalChannel] = {}

    def refresh(self) -> None:
        """The bus master's ports have moved."""
        for channel in self.channels.values():
            channel.route()

    def mode(self, device: str) -> str:
        """Return ``direct`` or ``virtualized``; while it is switched, what it was before."""
        front = self._channel(device).front
        return Way.DIRECT.value if front.target is front.physical else Way.VIRTUALIZED.value

    async def interpose(self, device: str, kind: str, options: dict[str, Any]) -> Interposer:
        """Attach an interposer; see ``Vm.interpose``."""
        channel = self._channel(device)
        if channel.front.target is not channel.front.emulated:
            raise VirtualizeError(f"{device} is direct: virtualize it first")
        if kind in channel.layers:
            raise VirtualizeError(f"{device} has a {kind} interposer already")
        make = _KINDS.get(kind)
        if make is None:
            raise VirtualizeError(f"there is no interposer {kind!r}: choose {', '.join(_KINDS)}")
        try:
            layer = make(channel, **options)
        except (TypeError, ValueError, OSError, LookupError) as error:
            raise VirtualizeError(f"{kind}: {error}") from None
        channel.add(kind, layer)
        return layer

    def remove_interposer(self, device: str, kind: str) -> None:
        """Take it away again."""
        channel = self._channel(device)
        if kind not in channel.layers:
            raise VirtualizeError(f"{device} has no {kind} interposer")
        try:
            channel.remove(kind)
        except ValueError as error:
            raise VirtualizeError(str(error)) from None

    def share(self, device: str, drive: int = 0) -> SharedDisk:
        """Return a read-only view of a virtualized disk."""
        channel = self._channel(device)
        if channel.front.target is not channel.front.emulated:
            raise VirtualizeError(f"{device} is direct: virtualize it first")
        if drive not in channel.stacks:
            raise VirtualizeError(f"{device} has no drive {drive}")
        return SharedDisk(channel.stacks[drive])

    def _channel(self, device: str) -> PhysicalChannel:
        channel = self.channels.get(device)
        if channel is None:
            if device in self.partition.devices:
                raise VirtualizeError(f"{device} is no physical device: name it in the machine's `physical`")
            raise VirtualizeError(f"this machine has no device called {device}")
        return channel

    async def switch(  # noqa: PLR0917 - the order of Vm.virtualize
        self,
        device: str,
        virtualize: bool,
        when: str,
        bound: float,
        on_bound: str,
        patience: float,
    ) -> SwitchReport:
        """Switch a device; see ``Vm.virtualize``."""
        channel = self._channel(device)
        if when not in ("between", "middle"):
            raise VirtualizeError(f"there is no {when!r} to switch at: choose between or middle")
        if on_bound not in ("rollback", "defer"):
            raise VirtualizeError(f"there is no {on_bound!r} for what to do past the bound: choose rollback or defer")
        if bound <= 0 or patience <= 0:
            raise VirtualizeError("bound and patience are seconds, more than none")
        plan = Plan(virtualize, when == "middle", int(bound * SECOND), on_bound == "defer", int(patience * SECOND), EAGER)
        begun: list[Switch] = []
        ended: asyncio.Future[SwitchReport] = asyncio.get_running_loop().create_future()

        def watch(state: RunState) -> None:
            if state in (RunState.OFF, RunState.FAILED) and not ended.done():
                ended.set_exception(VirtualizeError(f"the machine went off before {device} was switched"))

        self.partition.observers.append(watch)
        try:
            await self.partition.at_boundary(lambda: begun.append(self._begin(device, channel, plan, ended)))
            return await ended
        except asyncio.CancelledError:
            for switch in begun:
                switch.cancel()  # or it is finished, when it is too late for that
            raise
        finally:
            self.partition.observers.remove(watch)

    def _begin(self, device: str, channel: PhysicalChannel, plan: Plan, ended: asyncio.Future[SwitchReport]) -> Switch:
        if self.partition.state in (RunState.OFF, RunState.FAILED):
            raise VirtualizeError("the machine is off")
        if channel.switch is not None and channel.switch.step is not Step.ENDED:
            raise VirtualizeError(f"{device} is being switched already")
        if (channel.front.way is Way.VIRTUALIZED) is plan.virtualize:
            raise VirtualizeError(f"{device} is {channel.front.way.value} already")

        if not plan.virtualize and channel.layers:
            raise VirtualizeError(f"{device} has interposers ({', '.join(channel.layers)}): remove them first")

        def done(report: SwitchReport) -> None:
            self.partition.trace("switch", device=device, to=report.to, outcome=report.outcome.name, stage=report.stage)
            if not ended.done():
                ended.set_result(report)

        channel.switch = Switch(channel.front, channel.driver, plan, done)
        return channel.switch


def _trace(channel: PhysicalChannel, path: str | Path) -> Interposer:
    return TraceLayer(channel.partition.clock, path)


def _fault(channel: PhysicalChannel, rules: list[Rule | dict[str, Any]], seed: int = 0) -> Interposer:
    return FaultLayer(channel.partition.clock, [rule if isinstance(rule, Rule) else Rule(**rule) for rule in rules], seed)


def _limit(channel: PhysicalChannel, bytes_per_s: float = 0, requests_per_s: float = 0, burst: float = 0.01) -> Interposer:
    return LimitLayer(channel.partition.clock, bytes_per_s, requests_per_s, burst)


def _mirror(channel: PhysicalChannel, target: BlockDevice, drive: int = 0) -> Interposer:
    return MirrorLayer(channel.partition, drive, target, channel.disks[drive])


_KINDS: dict[str, Callable[..., Interposer]] = {"trace": _trace, "fault": _fault, "limit": _limit, "mirror": _mirror}


def build(
    partition: Partition, drives: list[list[Drive | None]], physical: tuple[str, ...] | list[str]
) -> tuple[list[AtaChannel], PhysicalDevices]:
    """Make the two channels' devices, the named ones physical; the others are ordinary, but cannot be moved."""
    devices = PhysicalDevices(partition)
    channels: list[AtaChannel] = []
    for number, places in enumerate(drives):
        name = f"ata{number}"
        if name in physical:
            channel = devices.channels[name] = PhysicalChannel(partition, number, places)
            channels.append(channel.front.physical.channel)
        else:
            channels.append(AtaChannel(Direct(partition), number, places))
    return channels, devices


class Direct(Cable):
    """The board of an ordinary device beside physical ones: the partition itself."""

    def __init__(self, partition: Partition) -> None:
        super().__init__(partition)
        self.give_to(guest=True)

    def line(self, number: int) -> InterruptLine:
        """Return the machine's wire."""
        return self.board.line(number)


def plug(devices: PhysicalDevices, channels: list[AtaChannel], bus_master: BusMaster) -> None:
    """Connect the channels and their bus master to the buses."""
    partition = devices.partition
    partition.plug(bus_master)
    for channel in channels:
        physical = devices.channels.get(channel.name)
        if physical is None:
            partition.plug(channel)
            continue
        link = physical.front.physical
        link.engine = bus_master.engines[physical.number]
        link.join()
        physical.join(bus_master)
