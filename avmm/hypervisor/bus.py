"""The port bus and the memory bus: who answers an access, and how often it was asked.

A port access is a dictionary look-up and a call. An access wider than what answers there is split into bytes, low first,
as an ISA bus does; where nobody answers, reads float to all-ones and writes are lost, and both are counted.

The invariant: two devices never answer one address; the second registration is refused.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from avmm.devices.device import Device, MemoryRange, PortRange

Read = Callable[[int, int], "int | Awaitable[int]"]
Write = Callable[[int, int, int], "Awaitable[None] | None"]
Wait = Callable[[Awaitable[int]], int]
"""Suspends the vCPU in the middle of its instruction until the awaitable is done, and returns its result."""


class BusError(ValueError):
    """Two devices want one address; the sentence names both."""


@dataclass(slots=True)
class Tally:
    """What was asked of one port, or one memory range."""

    device: str
    inside: bool
    reads: int = 0
    writes: int = 0
    direct: bool = False
    """Whether the guest reaches a physical device here, so that its accesses are no exits."""


class PortEntry:
    """Who answers a port, up to which width, and what it was asked."""

    __slots__ = ("read", "tally", "width", "write")

    def __init__(self, read: Read, write: Write, width: int, tally: Tally) -> None:
        self.read = read
        self.write = write
        self.width = width
        self.tally = tally


Route = dict[int, PortEntry]
"""One of the ways in which a device's ports can be answered."""


def _retire(past: dict[tuple[str, bool], Tally], direct: Tally, tally: Tally) -> None:
    """Move the counts of an entry that goes to those of its device, or to those that were no exits."""
    kept = direct if tally.direct else past.get((tally.device, tally.inside))
    if kept is None:
        kept = past[tally.device, tally.inside] = Tally(tally.device, tally.inside)
    kept.reads += tally.reads
    kept.writes += tally.writes
    tally.reads = tally.writes = 0


def _direct(tallies: list[Tally]) -> tuple[int, int]:
    """Return the reads and writes that were no exits."""
    return sum(tally.reads for tally in tallies if tally.direct), sum(tally.writes for tally in tallies if tally.direct)


def _listened(entry: PortEntry, heard: Callable[[int, bool], None]) -> PortEntry:
    """Return an entry whose accesses are heard: those to a device inside before they are made, those that took no packet afterwards."""
    read, write, tally = entry.read, entry.write, entry.tally

    def heard_read(port: int, size: int) -> int | Awaitable[int]:
        heard(port, False)
        return read(port, size)

    def heard_write(port: int, size: int, value: int) -> Awaitable[None] | None:
        heard(port, True)
        return write(port, size, value)

    def plain_read(port: int, size: int) -> int | Awaitable[int]:
        value = read(port, size)
        if isinstance(value, int):
            heard(port, False)
        return value

    def plain_write(port: int, size: int, value: int) -> Awaitable[None] | None:
        waiting = write(port, size, value)
        if waiting is None:
            heard(port, True)
        return waiting

    if tally.inside:
        return PortEntry(heard_read, heard_write, entry.width, tally)
    return PortEntry(plain_read, plain_write, entry.width, tally)


class PortBus:
    """The 65,536 I/O ports. ``read`` and ``write`` are the processor's callbacks."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._ports: dict[int, PortEntry] = {}
        self.floating: dict[int, Tally] = {}
        self.plain = 0
        """Accesses to devices outside that took no packet."""
        self._past: dict[tuple[str, bool], Tally] = {}
        """What devices were asked where they are not any more, by name and whether inside."""
        self._past_direct = Tally("physical", True, direct=True)
        """What physical devices were asked where they are not any more."""
        self._routes: list[Route] = []

    def attach(
        self, device: Device, ranges: tuple[PortRange, ...], read: Read, write: Write, *, inside: bool = True, direct: bool = False
    ) -> None:
        """Let ``read`` and ``write`` answer a device's ports. BusError when another device has one of them."""
        wanted: set[int] = set()
        for span in ranges:
            for port in range(span.first, span.first + span.count):
                taken = self._ports.get(port)
                if taken is not None:
                    raise BusError(f"port {port:#x} is wanted by {device.name} but belongs to {taken.tally.device}")
                if not 0 <= port <= 0xFFFF:
                    raise BusError(f"{device.name} wants port {port:#x}, which does not exist")
                if port in wanted:
                    raise BusError(f"port {port:#x} is wanted twice by {device.name}")
                wanted.add(port)
        for span in ranges:
            for port in range(span.first, span.first + span.count):
                self._ports[port] = PortEntry(read, write, span.width, Tally(device.name, inside, direct=direct))

    def detach(self, ranges: tuple[PortRange, ...], owner: Device | None = None) -> None:
        """Let ports float again; with ``owner`` only those that are its own."""
        for span in ranges:
            for port in range(span.first, span.first + span.count):
                entry = self._ports.get(port)
                if entry is not None and (owner is None or entry.tally.device == owner.name):
                    del self._ports[port]
                    _retire(self._past, self._past_direct, entry.tally)

    def add_route(self, ways: Iterable[tuple[Device, tuple[PortRange, ...], Read, Write]], *, direct: bool) -> Route:
        """Make a way in which those ports can be answered that the devices have, with or without exits, for :meth:`take`: the first
        must be taken at once.
        """
        route: Route = {}
        for device, ranges, read, write in ways:
            for span in ranges:
                for port in range(span.first, span.first + span.count):
                    entry = self._ports.get(port)
                    if entry is not None and entry.tally.device == device.name:
                        _retire(self._past, self._past_direct, entry.tally)
                        route[port] = PortEntry(read, write, span.width, Tally(device.name, True, direct=direct))
        self._routes.append(route)
        return route

    def drop_route(self, route: Route) -> None:
        """Forget a way that will not be taken any more."""
        self._routes = [one for one in self._routes if one is not route]
        for entry in route.values():
            _retire(self._past, self._past_direct, entry.tally)

    def take(self, route: Route) -> None:
        """Let the ports of a route be answered that way from now on. It counts on from where it was left."""
        self._ports.update(route)

    def read(self, port: int, size: int) -> int:
        """Answer IN: any port, any size."""
        entry = self._ports.get(port)
        if entry is None:
            return self._float(port, size, False)
        if size > entry.width:
            return sum(self.read(port + i & 0xFFFF, 1) << 8 * i for i in range(size))
        entry.tally.reads += 1
        value = entry.read(port, size)
        return value if isinstance(value, int) else self._wait(value)

    def write(self, port: int, size: int, value: int) -> None:
        """Take OUT: any port, any size."""
        entry = self._ports.get(port)
        if entry is None:
            self._float(port, size, True, value)
            return
        if size > entry.width:
            for i in range(size):
                self.write(port + i & 0xFFFF, 1, value >> 8 * i & 0xFF)
            return
        entry.tally.writes += 1
        waiting = entry.write(port, size, value)
        if waiting is not None:
            self._wait(waiting)  # type: ignore[arg-type]

    def _float(self, port: int, size: int, writing: bool, value: int = 0) -> int:
        if size > 1 and any(port + i & 0xFFFF in self._ports for i in range(size)):
            return self._float_partly(port, size, writing, value)
        tally = self.floating.setdefault(port, Tally("nobody", True))
        if writing:
            tally.writes += 1
        else:
            tally.reads += 1
        return (1 << 8 * size) - 1

    def _float_partly(self, port: int, size: int, writing: bool, value: int) -> int:
        """Answer an access of which only some ports, not the first, belong to a device: byte by byte."""
        if writing:
            for i in range(size):
                self.write(port + i & 0xFFFF, 1, value >> 8 * i & 0xFF)
            return 0
        return sum(self.read(port + i & 0xFFFF, 1) << 8 * i for i in range(size))

    def listen(self, device: str, heard: Callable[[int, bool], None]) -> Callable[[], None]:
        """Let ``heard(port, writing)`` hear each access of a device that traps and takes no packet, until what is returned is called."""
        before = {port: one for port, one in self._ports.items() if one.tally.device == device and not one.tally.direct}
        after = {port: _listened(entry, heard) for port, entry in before.items()}
        self._ports.update(after)

        def end() -> None:
            self._ports.update((port, entry) for port, entry in before.items() if self._ports.get(port) is after[port])

        return end

    def entry(self, port: int) -> Tally | None:
        """Return what is known of a port; None where nobody answers."""
        found = self._ports.get(port)
        return found.tally if found is not None else None

    def owner(self, port: int) -> str | None:
        """Return the name of the device that answers ``port``."""
        entry = self._ports.get(port)
        return entry.tally.device if entry is not None else None

    def direct(self) -> tuple[int, int]:
        """Return how often the guest read and wrote physical devices without an exit."""
        return _direct(self.every())

    def every(self) -> list[Tally]:
        """Return all that was counted, at whatever is answered now and whatever was before."""
        here = [entry.tally for entry in self._ports.values()]
        left = [entry.tally for route in self._routes for port, entry in route.items() if self.entry(port) is not entry.tally]
        return [*here, *left, *self._past.values(), self._past_direct]

    def tallies(self) -> dict[int, Tally]:
        """Return what each port of a device was asked."""
        return {port: entry.tally for port, entry in self._ports.items()}


class FirmwarePorts:
    """The ports as the built-in firmware uses them. It is part of the VMM and has no vCPU to suspend: wherever a device model
    lives, it is asked directly.
    """

    def __init__(self, bus: PortBus, devices: Mapping[str, Device]) -> None:
        self._bus = bus
        self._devices = devices

    def read(self, port: int, size: int) -> int:
        """Read a port. A device that would have the guest wait reads as nobody."""
        device = self._device(port)
        if device is None:
            return self._bus.read(port, size)
        value = device.read(port, size)
        return value if isinstance(value, int) else (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        """Write a port."""
        device = self._device(port)
        if device is None:
            self._bus.write(port, size, value)
        else:
            device.write(port, size, value)

    def _device(self, port: int) -> Device | None:
        """Return the device to ask instead of the bus: one that is outside."""
        entry = self._bus.entry(port)
        if entry is None or entry.inside:
            return None
        return self._devices.get(entry.device)


class MemoryBus:
    """Guest-physical address space that is not RAM. ``read`` and ``write`` are the processor's callbacks."""

    def __init__(self, wait: Wait) -> None:
        self._wait = wait
        self._firsts: list[int] = []
        self._spans: list[tuple[int, Read, Write, Tally]] = []
        self.floating = Tally("nobody", True)
        self._past: dict[tuple[str, bool], Tally] = {}
        self._past_direct = Tally("physical", True, direct=True)

    def attach(
        self, device: Device, ranges: tuple[MemoryRange, ...], read: Read, write: Write, *, inside: bool = True, direct: bool = False
    ) -> None:
        """Let ``read`` and ``write`` answer a device's memory ranges. BusError when another device has a part of them."""
        firsts, spans = self._firsts.copy(), self._spans.copy()  # taken over when nothing was refused
        for span in ranges:
            if span.first % 4096 or span.size % 4096 or span.size <= 0:
                raise BusError(f"{device.name}'s memory at {span.first:#x} is not made of whole pages")
            at = bisect_right(firsts, span.first)
            before, behind = at - 1, at
            if before >= 0 and spans[before][0] > span.first:
                raise BusError(f"memory at {span.first:#x} is wanted by {device.name} but belongs to {spans[before][3].device}")
            if behind < len(firsts) and firsts[behind] < span.first + span.size:
                owner = spans[behind][3].device
                raise BusError(f"memory at {firsts[behind]:#x} is wanted by {device.name} but belongs to {owner}")
            firsts.insert(at, span.first)
            spans.insert(at, (span.first + span.size, read, write, Tally(device.name, inside, direct=direct)))
        self._firsts, self._spans = firsts, spans

    def detach(self, ranges: tuple[MemoryRange, ...]) -> None:
        """Let memory ranges float again."""
        for span in ranges:
            if span.first in self._firsts:
                at = self._firsts.index(span.first)
                _retire(self._past, self._past_direct, self._spans[at][3])
                del self._firsts[at], self._spans[at]

    def read(self, address: int, size: int) -> int:
        """Answer a load."""
        at = bisect_right(self._firsts, address) - 1
        if at < 0 or address >= self._spans[at][0]:
            self.floating.reads += 1
            return (1 << 8 * size) - 1
        _, read, _, tally = self._spans[at]
        tally.reads += 1
        value = read(address, size)
        return value if isinstance(value, int) else self._wait(value)

    def write(self, address: int, size: int, value: int) -> None:
        """Take a store."""
        at = bisect_right(self._firsts, address) - 1
        if at < 0 or address >= self._spans[at][0]:
            self.floating.writes += 1
            return
        _, _, write, tally = self._spans[at]
        tally.writes += 1
        waiting = write(address, size, value)
        if waiting is not None:
            self._wait(waiting)  # type: ignore[arg-type]

    def tallies(self) -> dict[int, Tally]:
        """Return what each memory range, by its first address, was asked."""
        return {first: span[3] for first, span in zip(self._firsts, self._spans, strict=True)}

    def direct(self) -> tuple[int, int]:
        """Return how often the guest read and wrote physical devices without an exit."""
        return _direct(self.every())

    def every(self) -> list[Tally]:
        """Return all that was counted, at whatever is answered now and whatever was before."""
        return [*(span[3] for span in self._spans), *self._past.values(), self._past_direct]
