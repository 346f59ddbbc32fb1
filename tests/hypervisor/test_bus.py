"""The port bus and the memory bus."""

from __future__ import annotations

import random
from collections.abc import Awaitable

import pytest

from avmm.devices.device import Device, MemoryRange, PortRange
from avmm.hypervisor.bus import BusError, MemoryBus, PortBus
from tests.devices.bench import Bench


class Recorder(Device):
    """Answers with the port's low byte in each byte, and notes what it was asked."""

    def __init__(self, name: str, ports: tuple[PortRange, ...] = (), memory: tuple[MemoryRange, ...] = ()) -> None:
        super().__init__(Bench(4096))
        self.name, self.ports, self.memory = name, ports, memory
        self.log: list[tuple[object, ...]] = []

    def read(self, port: int, size: int) -> int:
        self.log.append(("in", port, size))
        return int.from_bytes(bytes((port + i) & 0xFF for i in range(size)), "little")

    def write(self, port: int, size: int, value: int) -> None:
        self.log.append(("out", port, size, value))

    def read_memory(self, address: int, size: int) -> int:
        self.log.append(("load", address, size))
        return 0x42

    def write_memory(self, address: int, size: int, value: int) -> None:
        self.log.append(("store", address, size, value))


def no_wait(awaitable: Awaitable[int]) -> int:
    raise AssertionError("nothing to wait for here")


def plug(bus: PortBus, device: Recorder, inside: bool = True) -> Recorder:
    bus.attach(device, device.ports, device.read, device.write, inside=inside)
    return device


def test_a_device_is_reached_by_one_of_its_routes_and_each_counts_on() -> None:
    bus = PortBus(no_wait)
    real, copy = Recorder("a", (PortRange(0x20, 2),)), Recorder("a")
    other = plug(bus, Recorder("b", (PortRange(0x22, 1),)))
    plug(bus, real)
    bus.read(0x20, 1)  # before there is a choice
    ports = (PortRange(0x20, 3),)  # one of them is not its own
    direct = bus.add_route([(real, ports, real.read, real.write)], direct=True)
    trapped = bus.add_route([(real, ports, copy.read, copy.write)], direct=False)

    def exits() -> int:
        return sum(tally.reads + tally.writes for tally in bus.every() if tally.device == "a" and not tally.direct)

    for _ in range(2):
        bus.take(direct)
        bus.read(0x20, 1)
        bus.take(trapped)
        bus.write(0x20, 1, 5)
        bus.write(0x21, 1, 5)
        bus.read(0x22, 1)
    assert (len(real.log), len(copy.log), len(other.log)) == (3, 4, 2)
    assert (bus.direct(), exits()) == ((2, 0), 5)
    assert {port: (tally.reads, tally.writes) for port, tally in bus.tallies().items()} == {0x20: (0, 2), 0x21: (0, 2), 0x22: (2, 0)}


def test_what_a_route_has_counted_is_kept_once_when_it_or_its_ports_go() -> None:
    bus = PortBus(no_wait)
    a = plug(bus, Recorder("a", (PortRange(0x20, 2),)))
    routes = [bus.add_route([(a, a.ports, a.read, a.write)], direct=direct) for direct in (True, False)]
    for route in routes:
        bus.take(route)
        bus.read(0x20, 1)
        bus.read(0x21, 1)

    def counts() -> tuple[tuple[int, int], int]:
        return bus.direct(), sum(tally.reads for tally in bus.every() if not tally.direct)

    assert counts() == ((2, 0), 2)
    bus.detach(a.ports, a)
    assert counts() == ((2, 0), 2)
    assert bus.read(0x20, 1) == 0xFF
    for route in routes:
        bus.drop_route(route)
        assert counts() == ((2, 0), 2)


def test_each_port_goes_to_its_device() -> None:
    bus = PortBus(no_wait)
    a, b = plug(bus, Recorder("a", (PortRange(0x20, 2), PortRange(0xA0, 1)))), plug(bus, Recorder("b", (PortRange(0x22, 1, 4),)))
    assert bus.read(0x21, 1) == 0x21
    bus.write(0xA0, 1, 9)
    assert bus.read(0x22, 4) == 0x25242322
    assert a.log == [("in", 0x21, 1), ("out", 0xA0, 1, 9)]
    assert b.log == [("in", 0x22, 4)]
    assert (bus.owner(0xA0), bus.owner(0x22), bus.owner(0x23)) == ("a", "b", None)


@pytest.mark.parametrize("wanted", [PortRange(0x1F, 2), PortRange(0x27, 8), PortRange(0x22, 1), PortRange(0, 0x10000)])
def test_overlap_is_refused_and_changes_nothing(wanted: PortRange) -> None:
    bus = PortBus(no_wait)
    plug(bus, Recorder("first", (PortRange(0x20, 8),)))
    with pytest.raises(BusError, match=r"port 0x2\d is wanted by second but belongs to first"):
        plug(bus, Recorder("second", (PortRange(0x100, 4), wanted)))
    assert bus.owner(0x100) is None
    assert bus.owner(0x20) == "first"


def test_a_device_that_overlaps_itself_is_refused() -> None:
    with pytest.raises(BusError):
        plug(PortBus(no_wait), Recorder("twice", (PortRange(0x20, 4), PortRange(0x23, 1))))


@pytest.mark.parametrize("span", [PortRange(0xFFFF, 2), PortRange(-1, 1), PortRange(0x10000, 1)])
def test_ports_that_do_not_exist(span: PortRange) -> None:
    bus = PortBus(no_wait)
    with pytest.raises(BusError, match="which does not exist"):
        plug(bus, Recorder("wild", (PortRange(0x10, 1), span)))
    assert bus.owner(0x10) is None


def test_wide_accesses_are_split_low_byte_first() -> None:
    bus = PortBus(no_wait)
    narrow = plug(bus, Recorder("narrow", (PortRange(0x40, 4, 1),)))
    word = plug(bus, Recorder("word", (PortRange(0x50, 4, 2),)))
    assert bus.read(0x40, 4) == 0x43424140
    bus.write(0x40, 2, 0xBBAA)
    assert narrow.log == [("in", p, 1) for p in range(0x40, 0x44)] + [("out", 0x40, 1, 0xAA), ("out", 0x41, 1, 0xBB)]
    assert bus.read(0x50, 2) == 0x5150
    assert bus.read(0x50, 4) == 0x53525150
    assert word.log == [("in", 0x50, 2)] + [("in", p, 1) for p in range(0x50, 0x54)]


def test_a_wide_access_reaches_the_neighbours() -> None:
    bus = PortBus(no_wait)
    a, b = plug(bus, Recorder("a", (PortRange(0x60, 1),))), plug(bus, Recorder("b", (PortRange(0x61, 1),)))
    assert bus.read(0x60, 4) == 0xFFFF6160
    bus.write(0x60, 4, 0x04030201)
    assert a.log == [("in", 0x60, 1), ("out", 0x60, 1, 1)]
    assert b.log == [("in", 0x61, 1), ("out", 0x61, 1, 2)]


def test_an_access_that_begins_on_a_floating_port() -> None:
    """Byte by byte, reads and writes alike: what belongs to a device gets there."""
    bus = PortBus(no_wait)
    a = plug(bus, Recorder("a", (PortRange(0x61, 1),)))
    assert bus.read(0x60, 2) == 0x61FF
    bus.write(0x60, 2, 0xBBAA)
    assert a.log == [("in", 0x61, 1), ("out", 0x61, 1, 0xBB)]
    assert (bus.floating[0x60].reads, bus.floating[0x60].writes) == (1, 1)


def test_floating_reads_all_ones_and_is_counted() -> None:
    bus = PortBus(no_wait)
    assert [bus.read(0x300, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    bus.write(0x300, 4, 1)
    tally = bus.floating[0x300]
    assert (tally.reads, tally.writes, tally.device) == (3, 1, "nobody")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_last_port_wraps_to_the_first(size: int) -> None:
    bus = PortBus(no_wait)
    plug(bus, Recorder("last", (PortRange(0xFFFF, 1),)))
    plug(bus, Recorder("first", (PortRange(0, 1),)))
    assert bus.read(0xFFFF, size) == int.from_bytes(b"\xff\x00\xff\xff"[:size], "little")
    bus.write(0xFFFF, size, 0)


def test_counts_by_port() -> None:
    bus = PortBus(no_wait)
    plug(bus, Recorder("a", (PortRange(0x40, 2),)), inside=False)
    bus.read(0x40, 2)
    bus.read(0x40, 1)
    bus.write(0x41, 1, 0)
    tallies = bus.tallies()
    assert (tallies[0x40].reads, tallies[0x41].reads, tallies[0x41].writes) == (2, 1, 1)
    assert not tallies[0x40].inside


def test_detach() -> None:
    bus = PortBus(no_wait)
    a = plug(bus, Recorder("a", (PortRange(0x40, 2),)))
    bus.detach(a.ports)
    bus.detach(a.ports)
    assert bus.read(0x40, 1) == 0xFF
    plug(bus, Recorder("b", (PortRange(0x41, 1),)))


def test_an_awaitable_is_waited_for() -> None:
    waited: list[object] = []

    async def later() -> int:
        return 5

    def wait(awaitable: Awaitable[int]) -> int:
        waited.append(awaitable)
        awaitable.close()  # type: ignore[attr-defined]
        return 0x55

    bus = PortBus(wait)
    device = Recorder("outside", (PortRange(0x40, 2, 2),))
    bus.attach(device, device.ports, lambda port, size: later(), lambda port, size, value: later())  # type: ignore[arg-type,return-value]
    assert bus.read(0x40, 2) == 0x55
    bus.write(0x40, 1, 0)
    assert len(waited) == 2


def test_random_accesses_never_raise() -> None:
    random_ = random.Random(1)
    bus = PortBus(no_wait)
    for n, first in enumerate(range(0, 0x10000, 7)):
        plug(bus, Recorder(f"d{n}", (PortRange(first, 3, random_.choice((1, 2, 4))),))) if first < 0xFFF0 else None
    for _ in range(3000):
        port, size = random_.randrange(0x10000), random_.choice((1, 2, 4))
        assert 0 <= bus.read(port, size) < 1 << 8 * size
        bus.write(port, size, random_.getrandbits(8 * size))


# -- memory


def test_memory_ranges() -> None:
    bus = MemoryBus(no_wait)
    a = Recorder("a", memory=(MemoryRange(0xFEC00000, 0x1000),))
    b = Recorder("b", memory=(MemoryRange(0xA0000, 0x20000), MemoryRange(0xFEE00000, 0x1000)))
    for device in (a, b):
        bus.attach(device, device.memory, device.read_memory, device.write_memory)
    assert bus.read(0xFEC00FFC, 4) == 0x42
    bus.write(0xBFFFF, 1, 7)
    bus.write(0xFEE00000, 8, 1 << 63)
    assert a.log == [("load", 0xFEC00FFC, 4)]
    assert b.log == [("store", 0xBFFFF, 1, 7), ("store", 0xFEE00000, 8, 1 << 63)]
    for address in (0, 0x9FFFF, 0xC0000, 0xFEC01000, 0xFEBFFFFF, 1 << 39):
        assert bus.read(address, 8) == (1 << 64) - 1
        bus.write(address, 1, 0)
    assert (bus.floating.reads, bus.floating.writes) == (6, 6)
    tallies = bus.tallies()
    assert (tallies[0xFEC00000].reads, tallies[0xA0000].writes) == (1, 1)
    bus.detach(a.memory)
    assert bus.read(0xFEC00000, 1) == 0xFF


@pytest.mark.parametrize(("first", "size"), [(0xA0000, 0x1000), (0x9F000, 0x2000), (0xBF000, 0x2000), (0x90000, 0x40000), (0xB0000, 0x1000)])
def test_memory_overlap_is_refused(first: int, size: int) -> None:
    bus = MemoryBus(no_wait)
    for name, span in (("first", MemoryRange(0xA0000, 0x20000)), ("second", MemoryRange(first, size))):
        device = Recorder(name)
        if name == "second":
            with pytest.raises(BusError, match="is wanted by second but belongs to first"):
                bus.attach(device, (MemoryRange(0x10000, 0x1000), span), device.read_memory, device.write_memory)
        else:
            bus.attach(device, (span,), device.read_memory, device.write_memory)
    assert bus.read(0x10000, 1) == 0xFF  # nothing of the refused device is left


@pytest.mark.parametrize(("first", "size"), [(0x123, 0x1000), (0x1000, 0x123), (0x1000, 0), (0x1000, -0x1000)])
def test_memory_is_made_of_whole_pages(first: int, size: int) -> None:
    device = Recorder("odd")
    with pytest.raises(BusError, match="whole pages"):
        MemoryBus(no_wait).attach(device, (MemoryRange(first, size),), device.read_memory, device.write_memory)
