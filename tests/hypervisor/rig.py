"""A partition with a guest assembled from source, an interrupt controller of one line, and a device to play with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from avmm.cpu.engine import Callbacks, CpuState, Processor, Segment
from avmm.cpu.script import Guest, ScriptProcessor
from avmm.cpu.unicorn.processor import UnicornProcessor
from avmm.devices.device import Device, PortRange
from avmm.hypervisor.irp import Irp
from avmm.hypervisor.partition import Partition
from tests.cpu.asm import assemble

STATE = CpuState(cs=Segment(0, 0, 0xFFFF, 0x9B), rip=0x1000, rsp=0x8000, cr0=0x10)


class Toy(Device):
    """Ports 0x300-0x307: what it does is up to the test. Each access is in ``log``."""

    name = "toy"
    ports = (PortRange(0x300, 8),)

    def __init__(self, board: Any) -> None:
        super().__init__(board)
        self.log: list[tuple[int, int | None]] = []
        self.resets = 0
        self.on_read: Callable[[int], Any] = lambda port: 0
        self.on_write: Callable[[int, int], Any] = lambda port, value: None

    def read(self, port: int, size: int) -> int | Awaitable[int]:
        self.log.append((port, None))
        answer: int | Awaitable[int] = self.on_read(port)
        return answer

    def write(self, port: int, size: int, value: int) -> Awaitable[None] | None:
        self.log.append((port, value))
        answer: Awaitable[None] | None = self.on_write(port, value)
        return answer

    def reset(self) -> None:
        self.resets += 1


class Controller:
    """Vectors in the order they were raised."""

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.vectors: list[int] = []

    @property
    def intr(self) -> bool:
        return bool(self.vectors)

    def acknowledge(self) -> int | None:
        vector = self.vectors.pop(0) if self.vectors else None
        self.partition.vcpu.interrupt(self.intr)
        return vector

    def raise_(self, vector: int = 0x20) -> None:
        self.vectors.append(vector)
        self.partition.vcpu.interrupt(True)


class Service:
    """A service OS that answers when the test says so, or never."""

    def __init__(self) -> None:
        self.irps: list[Irp] = []
        self.arrived = asyncio.Event()

    def submit(self, irp: Irp) -> Irp:
        self.irps.append(irp)
        self.arrived.set()
        return irp


class Machine:
    """A partition and its parts. ``make`` is a source for the assembler, or a scripted guest."""

    def __init__(self, make: str | Guest, *, virtual: bool = True, inside: bool = True, name: str = "m", on_triple_fault: str = "stop", seed: int = 0) -> None:
        def processor(callbacks: Callbacks, virtual_time: bool) -> Processor:
            if isinstance(make, str):
                return UnicornProcessor(callbacks, virtual_time=virtual_time, code_cache=1 << 20)
            return ScriptProcessor(callbacks, make)

        self.service = Service()
        self.partition = Partition(name, 1 << 20, virtual_time=virtual, seed=seed, service=self.service, make_processor=processor,
                                   on_triple_fault=on_triple_fault)  # fmt: skip
        self.controller = self.partition.vcpu.controller = Controller(self.partition)
        self.toy = Toy(self.partition)
        self.partition.plug(self.toy, inside=inside)
        self.states: list[str] = []
        self.partition.observers.append(lambda state: self.states.append(state.value))
        self.boots = 0

        def boot() -> CpuState:
            self.boots += 1
            if isinstance(make, str):
                code = assemble(make)
                self.partition.memory.write(0x1000, code)
            return STATE

        self.partition.boot_state = boot

    def peek(self, address: int) -> int:
        return int.from_bytes(self.partition.memory.read(address, 4), "little")
