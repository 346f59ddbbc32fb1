"""A bench with an ATA channel that can be virtualized, a plain one to compare with, and guests that are made of single accesses."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from avmm.devices.ata import AtaChannel, AtaDisk, BusMaster
from avmm.devices.device import Device
from avmm.interpose.ata.driver import AtaDriver, DriverDisk
from avmm.interpose.ata.front import AtaFront, EmulatedCable, EmulatedChannel
from avmm.interpose.ata.handover import AtaHandover
from avmm.interpose.switch import Plan, Switch, SwitchReport
from avmm.platform.ata import AtaLink
from avmm.platform.cable import Cable
from tests.devices.bench import Bench, MemoryDisk

BASE, STATUS, CONTROL, BM = 0x1F0, 0x1F7, 0x3F6, 0xC000
BUFFER, TABLE = 0x10000, 0x1000
SECTORS = 600


class Answer:
    """What an access that waits is answered with."""

    def __init__(self) -> None:
        self.values: list[int] = []

    def set_result(self, value: int) -> None:
        self.values.append(value)

    def done(self) -> bool:
        return bool(self.values)

    def __await__(self) -> Generator[Any, Any, int]:
        raise AssertionError("a bench has no loop")


@dataclass(frozen=True)
class Access:
    """IN or OUT."""

    port: int
    value: int | None = None
    size: int = 1


Guest = Generator[Access | int, int, None]
"""Yields accesses, or ns to wait; gets what an IN read."""


def pattern(sectors: int, seed: int) -> bytes:
    return b"".join((seed << 16 | n).to_bytes(4, "little") * 128 for n in range(sectors))


class Plain(Bench):
    """A machine with an ordinary channel."""

    device: Device

    def __init__(self, drives: int = 1) -> None:
        super().__init__()
        self.media = [MemoryDisk(SECTORS) for _ in range(drives)]
        for n, medium in enumerate(self.media):
            medium.data[:] = pattern(SECTORS, n + 1)
        self.log: list[object] = []
        self.accesses = 0
        self.build()

    def disks(self) -> list[AtaDisk]:
        return [AtaDisk(medium, serial=f"DISK{n}") for n, medium in enumerate(self.media)]

    def build(self) -> None:
        self.device = AtaChannel(self, 0, self.disks())
        assert isinstance(self.device, AtaChannel)
        self.dma = BusMaster(self, [self.device])
        self.dma.move(BM)

    def before(self, access: Access) -> None:
        """Something may happen between two accesses."""

    def perform(self, access: Access) -> int:
        self.before(access)
        self.accesses += 1
        device = self.dma if BM <= access.port < BM + 16 else self.device
        if access.value is not None:
            return self.put(device, access)
        return self.take(device, access)

    def put(self, device: Device, access: Access) -> int:
        assert access.value is not None
        self.write(device, access.port, access.value, access.size)
        return 0

    def take(self, device: Device, access: Access) -> int:
        return self.read(device, access.port, access.size)

    def run(self, guest: Guest) -> None:
        value = 0
        while True:
            try:
                step = guest.send(value if self.started else None)  # type: ignore[arg-type]
            except StopIteration:
                self.started = False
                return
            self.started = True
            value = 0
            if isinstance(step, int):
                self.pass_time(step)
            else:
                value = self.perform(step)

    started = False

    @property
    def edges(self) -> int:
        return self.line(14).edges


@dataclass
class Trigger:
    """A switch to be begun before access number ``at``."""

    at: int
    plan: Plan


@dataclass
class Switched(Plain):
    """The same machine with a channel that starts direct and is switched at given accesses."""

    triggers: list[Trigger] = field(default_factory=list)
    drives: int = 1
    virtual: bool = False

    def __post_init__(self) -> None:
        self.reports: list[SwitchReport] = []
        self.current: Switch | None = None
        self.waits = 0
        Plain.__init__(self, self.drives)
        if self.virtual:
            self.switch(Plan(virtualize=True))
            assert self.reports.pop().done

    def build(self) -> None:
        physical = AtaLink(Cable(self), 0, self.disks())
        self.driver = AtaDriver(physical)
        disks = [AtaDisk(DriverDisk(self.driver, n, SECTORS, False), serial=f"DISK{n}") for n in range(self.drives)]
        emulated = AtaLink(EmulatedCable(self), 0, disks, EmulatedChannel)
        self.device = self.front = AtaFront(self, physical, emulated, Answer)
        self.dma = BusMaster(self, [physical.channel])
        self.dma.move(BM)
        physical.engine = self.dma.engines[0]
        physical.join()
        self.front.on_route = self.routed

    def routed(self) -> None:
        self.dma.shown[0] = self.front.engine

    def switch(self, plan: Plan) -> Switch:
        self.current = Switch(self.front, AtaHandover(self.front, self.driver), plan, self.reports.append)
        return self.current

    def before(self, access: Access) -> None:
        while self.triggers and self.triggers[0].at <= self.accesses and (self.current is None or self.current.step.value == "ended"):
            trigger = self.triggers.pop(0)
            self.switch(trigger.plan)

    def put(self, device: Device, access: Access) -> int:
        if device is not self.front or (access.port in self.windows and self.windows[access.port][1]):
            return super().put(device, access)
        _, write, _ = self.front.handlers
        assert access.value is not None
        answer = write(access.port, access.size, access.value)
        return self.wait_for(answer)

    def take(self, device: Device, access: Access) -> int:
        if device is not self.front or access.port in self.windows:
            return super().take(device, access)
        read, _, _ = self.front.handlers
        return self.wait_for(read(access.port, access.size))

    def wait_for(self, answer: object) -> int:
        if not isinstance(answer, Answer):
            return answer if isinstance(answer, int) else 0
        self.waits += 1
        for _ in range(10000):
            if answer.values:
                return answer.values[0]
            self.pass_time(1000)
        raise AssertionError("an access waits for ever")


# -- guests


def command(code: int, lba: int = 0, count: int = 1, drive: int = 0, *, ext: bool = False, chs: bool = False, features: int | None = None) -> Guest:
    """Write the command block as a driver does."""
    if chs:
        track, sector = divmod(lba, 63)
        yield Access(BASE + 6, 0xA0 | drive << 4 | track % 16)
        values = [sector + 1, track // 16 & 0xFF, track // 16 >> 8]
    else:
        yield Access(BASE + 6, 0xE0 | drive << 4 | (0 if ext else lba >> 24 & 15))
        values = [lba & 0xFF, lba >> 8 & 0xFF, lba >> 16 & 0xFF]
    if features is not None:
        yield Access(BASE + 1, features)
    if ext:
        yield Access(BASE + 2, count >> 8)
        for i in range(3):
            yield Access(BASE + 3 + i, lba >> 24 + 8 * i & 0xFF)
    yield Access(BASE + 2, count & 0xFF)
    for i in range(3):
        yield Access(BASE + 3 + i, values[i])
    yield Access(STATUS, code)


def not_busy(log: list[object]) -> Generator[Access | int, int, int]:
    for _ in range(100000):
        status = yield Access(CONTROL)
        if not status & 0x80:
            log.append(("status", status))
            return status
        yield 5000
    raise AssertionError("busy for ever")


def acknowledge(log: list[object]) -> Generator[Access | int, int, int]:
    """Read status; a device that is idle may be found busy for the time of a switch."""
    while (status := (yield Access(STATUS))) & 0x80:
        yield 5000
    log.append(("ack", status))
    return status


def finish(log: list[object], registers: bool = True) -> Guest:
    yield from not_busy(log)
    yield from acknowledge(log)
    if registers:
        values = []
        for offset in range(1, 7):
            values.append((yield Access(BASE + offset)))
        log.append(("registers", *values))


def pio_in(log: list[object], sectors: int, block: int = 1, size: int = 2) -> Guest:
    left = sectors
    while left:
        yield from not_busy(log)
        status = yield from acknowledge(log)
        if not status & 8:
            return
        data = []
        for _ in range(min(block, left) * 512 // size):
            data.append((yield Access(BASE, None, size)))
        log.append(("data", hash(tuple(data))))
        left -= min(block, left)
    yield from finish(log)


def pio_out(log: list[object], sectors: int, seed: int, block: int = 1, size: int = 2) -> Guest:
    left = sectors
    value = seed
    while left:
        yield from not_busy(log)
        status = yield from acknowledge(log)
        if not status & 8:
            return
        for _ in range(min(block, left) * 512 // size):
            value = (value * 1103515245 + 12345) & 0xFFFFFFFF
            yield Access(BASE, value >> 8 & 0xFFFF, size)
        left -= min(block, left)
    yield from finish(log)


def dma(log: list[object], machine: Bench, code: int, lba: int, count: int, *, ext: bool = True, drive: int = 0) -> Guest:
    """A bus master transfer as SFF-8038i says: table, direction, clear, command, start, wait for the interrupt, stop."""
    to_memory = code in (0xC8, 0x25)
    machine.memory.pack("<II", TABLE, BUFFER, (count * 512) & 0xFFFF | 0x80000000)
    yield Access(BM + 4, TABLE, 4)
    yield Access(BM, 8 if to_memory else 0)
    yield Access(BM + 2, 6)
    yield from command(code, lba, count, drive, ext=ext)
    yield Access(BM, 9 if to_memory else 1)
    for _ in range(10000):
        status = yield Access(BM + 2)
        if status & 4:
            break
        yield 5000
    else:
        raise AssertionError("no interrupt from the bus master")
    log.append(("bm", status))
    yield Access(BM, 8 if to_memory else 0)
    yield from acknowledge(log)
    yield Access(BM + 2, 6)
    log.append(("bm", (yield Access(BM + 2))))
    log.append(("memory", hash(bytes(machine.memory.read(BUFFER, count * 512)))))
    yield from finish(log)


def compare(make: Callable[[Plain], Guest], triggers: list[Trigger], drives: int = 1, virtual: bool = False) -> Switched:
    """Run a guest on both machines: what it read, what is on the disks and how often it was interrupted must be the same."""
    plain = Plain(drives)
    plain.run(make(plain))
    switched = Switched(triggers=triggers, drives=drives, virtual=virtual)
    switched.run(make(switched))
    assert switched.log == plain.log
    assert [bytes(medium.data) for medium in switched.media] == [bytes(medium.data) for medium in plain.media]
    assert switched.edges == plain.edges
    return switched
