"""Every device model of a PC, moved in the middle of whatever it does: the guest sees what it sees of one that stays (I7).

A guest makes accesses that hypothesis chose, after a recipe that begins something real: a disk command, a packet, a periodic timer,
keys on their way. It does so twice, the second time on a machine where the device is exchanged for a new instance in another place
after some step, and back after another. All that was read, every interrupt with its moment, and the state of every
device at the end are the same.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import avmm
from avmm.clock import VirtualClock
from avmm.control.placement import MachineSite
from avmm.cpu.script import ScriptCpu, ScriptProcessor
from avmm.devices.i8042 import I8042
from avmm.devices.uart import Uart
from tests.vm.scripted import end_of_interrupt, start_pic, start_pit

Step = tuple[Any, ...]
"""("in", port, size), ("out", port, size, value), ("ins", port, words), ("outs", port, bytes), ("load", address, size),
("store", address, size, value), ("time", ns), ("keys", text), ("mouse", dx, dy, buttons), ("receive", bytes)"""


def outs(*pairs: tuple[int, int], size: int = 1) -> list[Step]:
    return [("out", port, size, value) for port, value in pairs]


def ata(base: int, command: int, count: int = 3, lba: int = 5, device: int = 0xE0) -> list[Step]:
    return outs((base + 6, device), (base + 2, count), (base + 3, lba), (base + 4, 0), (base + 5, 0), (base + 7, command))


def packet(*cdb: int) -> list[Step]:
    return [*outs((0x176, 0xA0), (0x171, 0), (0x174, 0), (0x175, 8), (0x177, 0xA0)), ("outs", 0x170, bytes(cdb).ljust(12, b"\0"))]


def pci(function: int, register: int, value: int) -> list[Step]:
    return [*outs((0xCF8, 0x80000000 | function << 8 | register), size=4), *outs((0xCFC, value), size=4)]


PRD = 0x9000
BUS_MASTER: list[Step] = [*pci(0x09, 0x20, 0xC001), *pci(0x09, 4, 5), ("store", PRD, 4, 0xA000), ("store", PRD + 4, 4, 700),
                          ("store", PRD + 8, 4, 0xB000), ("store", PRD + 12, 4, 0x80000000 | 1536 - 700), *outs((0xC004, PRD), size=4)]  # fmt: skip
KEYBOARD = outs((0x64, 0x60), (0x60, 0x47), (0x64, 0xA8), (0x64, 0xD4), (0x60, 0xF4))
LAPIC = [("store", 0xFEE000F0, 4, 0x1FF), ("store", 0xFEE003E0, 4, 0xB), ("store", 0xFEE00320, 4, 0x20055), ("store", 0xFEE00380, 4, 2000)]


@dataclass(frozen=True)
class Kind:
    """How one device is exercised: recipes to begin with, the accesses that follow them."""

    recipes: tuple[list[Step], ...]
    ports: tuple[int, ...] = ()
    memory: tuple[int, int] | None = None
    more: tuple[st.SearchStrategy[Step], ...] = ()
    size: int = 1

    def steps(self) -> st.SearchStrategy[list[Step]]:
        one: list[st.SearchStrategy[Step]] = [
            st.tuples(st.just("time"), st.sampled_from([0, 700, 30_000, 900_000, 20_000_000])),
            *self.more,
        ]
        if self.ports:
            port, size, value = st.sampled_from(self.ports), st.just(self.size), st.integers(0, (1 << 8 * self.size) - 1)
            one += [st.tuples(st.just("in"), port, size)] * 2 + [st.tuples(st.just("out"), port, size, value)]
        if self.memory is not None:
            first, stride = self.memory
            address = st.integers(0, 63).map(lambda n: first + n * stride)
            one += [
                st.tuples(st.just("load"), address, st.just(4)),
                st.tuples(st.just("store"), address, st.just(4), st.integers(0, 1 << 17)),
            ]
        follow = st.lists(st.one_of(one), min_size=2, max_size=14)
        return st.builds(lambda recipe, rest: [*recipe, *rest], st.sampled_from(self.recipes), follow)


def span(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


def strings(port: int) -> tuple[st.SearchStrategy[Step], ...]:
    return (
        st.tuples(st.just("ins"), st.just(port), st.integers(1, 300)),
        st.tuples(st.just("outs"), st.just(port), st.binary(min_size=2, max_size=600).map(lambda b: b[: len(b) & ~1])),
    )


KEYS = (
    st.tuples(st.just("keys"), st.sampled_from(["a", "b", "shift", "space"])),
    st.tuples(st.just("mouse"), st.integers(-300, 300), st.integers(-300, 300), st.integers(0, 7)),
)
KINDS = {
    "pic": Kind(([], outs((0x20, 0x11), (0x21, 0x40), (0x21, 4)), outs((0x20, 0x0C), (0x21, 0))), (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)),
    "pit": Kind(
        (
            outs((0x43, 0x36), (0x40, 0x10)),
            outs((0x43, 0x34), (0x40, 99), (0x40, 1)),
            outs((0x43, 0xB0), (0x42, 5), (0x42, 9), (0x61, 3)),
            outs((0x43, 0x04)),
        ),
        (0x40, 0x41, 0x42, 0x43, 0x61),
    ),
    "speaker": Kind((outs((0x43, 0xB6), (0x42, 50), (0x42, 4), (0x61, 3)), outs((0x61, 2))), (0x61, 0x42, 0x43)),
    "rtc": Kind(
        (
            outs((0x70, 0x0A), (0x71, 0x26), (0x70, 0x0B), (0x71, 0x42)),
            outs((0x70, 0x0B), (0x71, 0x12)),
            outs((0x70, 0x0B), (0x71, 0x82), (0x70, 2)),
        ),
        (0x70, 0x71),
    ),
    "keyboard": Kind(
        (KEYBOARD, [*KEYBOARD, *outs((0x64, 0xD4), (0x60, 0xF3))], outs((0x60, 0xED)), outs((0x64, 0x60)), outs((0x60, 0xFF))),
        (0x60, 0x64),
        more=KEYS,
    ),
    "video": Kind(
        (
            outs((0x3C0, 0x10)),
            outs((0x3C8, 7), (0x3C9, 1)),
            outs((0x3C7, 9), (0x3CE, 6), (0x3CF, 5)),
            outs((0x3C4, 4), (0x3C5, 6), (0x3CE, 5), (0x3CF, 2)),
        ),
        span(0x3C0, 0x1B),
        (0xA0000, 0x7FC),
    ),
    "com1": Kind(
        (
            outs((0x3FB, 0x83), (0x3F8, 1), (0x3F9, 0), (0x3FB, 3), (0x3FA, 0xC7), (0x3F9, 0x0F), (0x3F8, 65)),
            outs((0x3FB, 0x80), (0x3F8, 12)),
            outs((0x3FC, 0x1F), (0x3F9, 3), (0x3F8, 66)),
        ),
        span(0x3F8, 8),
        more=(st.tuples(st.just("receive"), st.binary(max_size=40)),),
    ),
    "lapic": Kind(
        (LAPIC, LAPIC[:1], [*LAPIC[:2], ("store", 0xFEE00320, 4, 0x54), ("store", 0xFEE00380, 4, 90)]), memory=(0xFEE00000, 0x10)
    ),
    "ioapic": Kind(
        ([("store", 0xFEC00000, 4, 0x14)], [("store", 0xFEC00000, 4, 0x14), ("store", 0xFEC00010, 4, 0x8028)]), memory=(0xFEC00000, 0x10)
    ),
    "acpi-power": Kind((outs((0xB2, 0xF1)), []), (), more=(st.tuples(st.just("pm"), st.integers(0, 11), st.integers(0, 255)),)),
    "debug": Kind((outs((0x402, 65)),), (0x402,)),
    "debug-e9": Kind((outs((0xE9, 65)),), (0xE9,)),
    "post": Kind((outs((0x80, 65)),), (0x80,)),
    "ata0": Kind(
        (ata(0x1F0, 0x20), ata(0x1F0, 0x30), ata(0x1F0, 0xC4), ata(0x1F0, 0xC5), ata(0x1F0, 0xEC), ata(0x1F0, 0x90), ata(0x1F0, 0xE7)),
        (*span(0x1F0, 8), 0x1F7, 0x3F6),
        more=strings(0x1F0),
    ),
    "ata1": Kind(
        (
            packet(0x28, 0, 0, 0, 0, 1, 0, 0, 3),
            packet(0x12, 0, 0, 0, 36),
            packet(0x43, 0, 0, 0, 0, 0, 0, 0, 20),
            packet(0x00),
            ata(0x170, 0xA1, device=0xA0),
            outs((0x177, 0xA0)),
        ),
        (*span(0x170, 8), 0x177, 0x376),
        more=strings(0x170),
    ),
    "bmide": Kind(
        ([*BUS_MASTER, *ata(0x1F0, 0xC8), *outs((0xC000, 9))], [*BUS_MASTER, *outs((0xC000, 1)), *ata(0x1F0, 0xCA)], BUS_MASTER),
        (0xC000, 0xC002, 0x1F7),
    ),
    "pci": Kind((outs((0xCF8, 0x80000904), size=4),), (0xCF8, 0xCFC), size=4),
}


MOST = 500
"""As much is compared: a level-triggered line that nobody lowers interrupts for ever."""


class Player:
    """The guest that makes the accesses, and moves the device between two of them."""

    def __init__(self, device: str, steps: list[Step], moves: set[int]) -> None:
        self.device, self.steps, self.moves = device, steps, moves
        self.seen: list[object] = []
        self.vm: avmm.Vm

    async def guest(self, cpu: ScriptCpu) -> None:
        def handler(vector: int) -> Callable[[ScriptCpu], Any]:
            async def handle(cpu: ScriptCpu) -> None:
                self.seen.append((vector, self.vm.partition.clock.now()))
                if vector < 0x30:
                    await end_of_interrupt(cpu, vector & 15)
                else:
                    await cpu.store(0xFEE000B0, 0)

            return handle

        for vector in range(0x20, 0x100):
            cpu.on(vector, handler(vector))
        await start_pic(cpu)
        await start_pit(cpu, 100)
        cpu.sti()
        for number, step in enumerate(self.steps):
            if number in self.moves:
                self.move()
            self.seen.append(await self.make(cpu, step))
        self.seen.append({name: live.save() for name, live in self.vm.partition.devices.items() if name in KINDS})

    def move(self) -> None:
        site, wanted = MachineSite(self.vm.machine), "service" if self.vm.placement[self.device] == "hypervisor" else "hypervisor"
        image = type(self.vm.partition.devices[self.device])
        site.switch(site.transfer(self.device, image, wanted), "builtin")

    async def make(self, cpu: ScriptCpu, step: Step) -> object:
        kind, *rest = step
        match kind:
            case "in":
                return await {1: cpu.inb, 2: cpu.inw, 4: cpu.inl}[rest[1]](rest[0])
            case "out":
                await {1: cpu.outb, 2: cpu.outw, 4: cpu.outl}[rest[1]](rest[0], rest[2])
            case "pm":
                port = self.vm.partition.devices["acpi-power"].ports[0].first + rest[0]
                await cpu.outb(port, rest[1] & ~0x20)  # not into S5
                return await cpu.inb(port)
            case "ins":
                return await cpu.insw(*rest)
            case "outs":
                await cpu.outsw(*rest)
            case "load":
                return await cpu.load(*rest)
            case "store":
                await cpu.store(rest[0], rest[2], rest[1])
            case "time":
                await self.wait(cpu, rest[0])
            case _:
                return self.from_outside(kind, *rest)
        return None

    def from_outside(self, kind: str, *rest: Any) -> object:
        """Keys, the mouse and the serial line."""
        keyboard, uart = self.vm.partition.devices["keyboard"], self.vm.partition.devices["com1"]
        assert isinstance(keyboard, I8042)
        assert isinstance(uart, Uart)
        if kind == "keys":
            return [keyboard.press(rest[0]), keyboard.release(rest[0])]
        if kind == "mouse":
            keyboard.mouse(*rest)
        else:
            uart.receive(rest[0])
        return None

    async def wait(self, cpu: ScriptCpu, ns: int) -> None:
        """Let machine time pass, each timer fire at its deadline."""
        clock = self.vm.partition.clock
        assert isinstance(clock, VirtualClock)
        end = clock.now() + ns
        while clock.now() < end:
            due = clock.next_due()
            clock.advance_to(end if due is None else min(max(due, clock.now()), end))
            self.vm.partition.processor.kick()
            await cpu.inb(0x92)


async def play(folder: Path, device: str, steps: list[Step], moves: set[int]) -> list[object]:
    player = Player(device, steps, moves)
    disks = [avmm.Disk(folder / "disk.img", "overlay")]
    async with avmm.Host() as host:
        player.vm = vm = await host.create_vm(avmm.VmConfig(memory="1M", disks=disks, cdrom=folder / "cd.iso"), player.guest)
        await vm.start()
        processor = vm.partition.processor
        assert isinstance(processor, ScriptProcessor)
        await vm.wait_until(lambda: processor.finished or len(player.seen) > MOST, timeout=100)
        return player.seen[:MOST]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    (folder / "disk.img").write_bytes(b"".join(struct.pack("<I", n) for n in range(64 * 128)))
    (folder / "cd.iso").write_bytes(b"".join(struct.pack("<I", ~n & 0xFFFFFFFF) for n in range(64 * 512)))
    return folder


def test_every_device_that_can_be_moved_is_here() -> None:
    async def names() -> set[str]:
        async with avmm.Host() as host:
            return set((await host.create_vm(avmm.VmConfig(memory="1M"))).placement)

    assert asyncio.run(names()) == set(KINDS)


@pytest.mark.parametrize("device", KINDS)
def test_moved_in_the_middle_of_an_operation(device: str, images: Path) -> None:
    kind = KINDS[device]

    @settings(derandomize=True, max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(kind.steps(), st.integers(1, 20), st.integers(1, 8))
    def same(steps: list[Step], first: int, then: int) -> None:
        moves = {min(first, len(steps) - 1), min(first + then, len(steps) - 1)}
        assert asyncio.run(play(images, device, steps, moves)) == asyncio.run(play(images, device, steps, set()))

    same()


READ_DMA: list[Step] = [
    *BUS_MASTER, ("in", 0x1F7, 1), *outs((0x1F6, 0xA0)), ("in", 0x3F6, 1), ("in", 0x1F7, 1),
    *outs((0x1F1, 0), (0x1F2, 3), (0x1F3, 5), (0x1F4, 0), (0x1F5, 0), (0x1F6, 0xE0)), ("in", 0x1F7, 1), ("in", 0xC000, 1),
    *outs((0xC000, 8), (0x1F7, 0xC8)), ("in", 0x3F6, 1), ("in", 0xC000, 1), *outs((0xC000, 9)), ("time", 900_000), ("in", 0xC002, 1),
    ("in", 0xC000, 1), *outs((0xC000, 8)), ("in", 0x3F6, 1), ("in", 0x1F7, 1), ("in", 0xC002, 1), *outs((0xC002, 4)), ("in", 0xC002, 1),
    ("load", 0xA000, 4), ("load", 0xB000, 4),
]  # fmt: skip
"""What Linux does for one request, the most of it in plain registers."""


@pytest.mark.parametrize("device", ["ata0", "bmide"])
def test_moved_at_each_access_of_a_dma_request(device: str, images: Path) -> None:
    still = asyncio.run(play(images, device, READ_DMA, set()))
    assert still[-3:-1] == [5 * 128, 5 * 128 + 175]
    for at in range(len(BUS_MASTER) - 1, len(READ_DMA) - 2):
        assert asyncio.run(play(images, device, READ_DMA, {at})) == still, f"moved before step {at}, {READ_DMA[at]}"
