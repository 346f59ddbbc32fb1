"""A bench for the BIOS services: a processor that is a dict of registers, a port bus that is a dict, and a whole Bios on them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

from avmm.boot.bios import bda
from avmm.boot.bios.bios import Bios
from avmm.boot.bios.caller import CF, ZF
from avmm.boot.bios.drives import BiosDrive
from avmm.boot.bios.rom import CALLS, PRIVATE_PORT, Service
from avmm.cpu.engine import Processor, Segment
from avmm.devices.device import Board
from tests.devices.bench import Bench

_WIDE = {"a": "rax", "b": "rbx", "c": "rcx", "d": "rdx"}
_OTHERS = ("rsi", "rdi", "rbp", "rsp", "rip", "rflags")


def place(name: str) -> tuple[str, int, int]:
    """Return (64-bit register, shift, mask) of a register name."""
    if len(name) == 2 and name[0] in _WIDE and name[1] in "lhx":
        return _WIDE[name[0]], 8 if name[1] == "h" else 0, 0xFFFF if name[1] == "x" else 0xFF
    if name[0] == "e" and "r" + name[1:] in (*_OTHERS, *_WIDE.values()):
        return "r" + name[1:], 0, 0xFFFFFFFF
    if "r" + name in _OTHERS:
        return "r" + name, 0, 0xFFFF
    return name, 0, (1 << 64) - 1


class FakeCpu:
    """The part of a Processor that the BIOS uses: registers with their aliases, segments in real mode, no paging."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.holes: set[int] = set()

    def register(self, name: str) -> int:
        where, shift, mask = place(name)
        return self.values.get(where, 0) >> shift & mask

    def set_register(self, name: str, value: int) -> None:
        where, shift, mask = place(name)
        assert 0 <= value <= mask, f"{value:#x} does not fit in {name}"
        self.values[where] = self.values.get(where, 0) & ~(mask << shift) | value << shift

    def segment(self, name: str) -> Segment:
        selector = self.values.get(name, 0)
        return Segment(selector, selector << 4)

    def translate(self, linear: int) -> int | None:
        return None if linear >> 12 in self.holes else linear


class FakePorts:
    """A port bus: ``reads`` answer (a value, or a list used up from the front); ``log`` has the writes. CMOS behind 70h/71h."""

    def __init__(self) -> None:
        self.reads: dict[int, int | list[int] | Callable[[], int]] = {0x64: 0}
        self.log: list[tuple[int, int]] = []
        self.cmos = bytearray(128)
        self.index = 0

    def read(self, port: int, size: int) -> int:
        if port == 0x71:
            return self.cmos[self.index]
        answer = self.reads.get(port, (1 << 8 * size) - 1)
        if callable(answer):
            return answer()
        if isinstance(answer, list):
            return answer.pop(0)
        return answer

    def write(self, port: int, size: int, value: int) -> None:
        assert 0 <= value < 1 << 8 * size
        self.log.append((port, value))
        if port == 0x70:
            self.index = value & 0x7F
        elif port == 0x71:
            self.cmos[self.index] = value

    def written(self, port: int) -> list[int]:
        return [value for where, value in self.log if where == port]


class Screen:
    """Int 10h: what teletype was asked to print."""

    def __init__(self, cpu: FakeCpu) -> None:
        self.cpu = cpu
        self.text = ""
        self.modes: list[int] = []

    def call(self) -> None:
        if self.cpu.register("ah") == 0x0E:
            self.text += chr(self.cpu.register("al"))
        elif self.cpu.register("ah") == 0:
            self.modes.append(self.cpu.register("al"))


class BiosBench:
    """A Bios after POST, whose services a test calls as a guest would."""

    def __init__(self, drives: Sequence[BiosDrive] = (), ram: int = 2 << 20, post: bool = True, **options: Any) -> None:
        self.board = Bench(ram)
        self.memory = self.board.memory
        self.cpu = FakeCpu()
        self.ports = FakePorts()
        self.screen = Screen(self.cpu)
        self.failures: list[str] = []
        options = {"memory_size": ram, "on_boot_failure": self.failures.append, **options}
        self.bios = Bios(cast(Board, self.board), cast(Processor, self.cpu), self.ports, self.screen, drives, **options)
        self.bios.install()
        if post:
            self.service(Service.POST)
            self.ports.log.clear()

    def service(self, service: Service, flags: int = 0, **registers: int) -> None:
        """Do what the stub's OUT does, to the end, with the frame of an INT at 0000:7000."""
        self.cpu.values["rsp"] = 0x7000
        self.cpu.values["ss"] = 0
        self.memory.write(0x7000, struct.pack("<HHH", 0x1234, 0x0100, flags))
        for name, value in registers.items():
            self.cpu.set_register(name, value)
        self.again(service)

    def again(self, service: Service) -> None:
        """The OUT of ``service`` with registers and frame as they are."""
        self.cpu.values["cs"] = 0xF000
        self.cpu.values["rip"] = next(ip for ip, value in CALLS.items() if value is service)
        work = self.bios.write(PRIVATE_PORT, 1, self.cpu.register("al"))
        if work is not None:
            asyncio.run(cast(Any, work))

    def __getitem__(self, register: str) -> int:
        return self.cpu.register(register)

    @property
    def flags(self) -> int:
        return self.memory.unpack("<H", 0x7004)[0]

    @property
    def carry(self) -> bool:
        return bool(self.flags & CF)

    @property
    def zero(self) -> bool:
        return bool(self.flags & ZF)

    def waiting(self) -> bool:
        """Whether the service asked its stub to wait."""
        return bool(self.flags & 0x8000)

    @property
    def frame(self) -> tuple[int, int]:
        """CS and IP that IRET will go to."""
        offset, segment = self.memory.unpack("<HH", 0x7000)
        return segment, offset

    def keys(self) -> list[int]:
        """Empty the keyboard ring and return its words."""
        head, tail = self.memory.unpack("<HH", bda.KEY_HEAD)
        words = []
        while head != tail:
            words.append(self.memory.unpack("<H", 0x400 + head)[0])
            head = head + 2 if head + 2 < 0x3E else 0x1E
        self.memory.pack("<H", bda.KEY_HEAD, tail)
        return words
