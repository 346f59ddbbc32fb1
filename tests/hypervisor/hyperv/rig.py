"""The enlightened interface on a bench: a real local APIC, and a processor that is nothing but registers."""

from __future__ import annotations

from avmm.cpu.engine import Callbacks, Segment
from avmm.devices.lapic import LocalApic
from avmm.hypervisor.features import Msrs
from avmm.hypervisor.hyperv.hyperv import HyperV
from tests.devices.bench import Bench

CODE64, CODE32 = 0xA9B, 0xC9B


class NoPic:
    """Nothing on LINT0."""

    intr = False

    def acknowledge(self) -> int | None:
        return None


class Registers:
    """A processor's registers; ``cs`` and ``ss`` attributes decide mode and ring."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {"cr0": 0x80000011, "rflags": 2}
        self.cs, self.ss = CODE64, 0xC93
        self.callbacks = Callbacks(*[None] * 9)  # type: ignore[arg-type]

    def register(self, name: str) -> int:
        if name in self.values:
            return self.values[name]
        return self.values.get("r" + name[1:], 0) & 0xFFFFFFFF if name.startswith("e") else 0

    def set_register(self, name: str, value: int) -> None:
        self.values["r" + name[1:] if name.startswith("e") else name] = value

    @property
    def kernel_bits(self) -> int:
        if not self.values["cr0"] & 1 or self.values["rflags"] & 1 << 17 or self.ss >> 5 & 3:
            return 0
        return 64 if self.cs & 1 << 9 else 32

    def segment(self, name: str) -> Segment:
        return Segment(8, 0, 0xFFFFFFFF, self.cs if name == "cs" else self.ss)


class Rig:
    """A bench with the interface on it. ``write`` and ``read`` are WRMSR and RDMSR."""

    def __init__(self, ram: int = 8 << 20) -> None:
        self.bench = Bench(ram)
        self.memory = self.bench.memory
        self.apic = LocalApic(self.bench, NoPic())
        self.apic.write_memory(0xFEE000F0, 4, 0x1FF)
        self.registers = Registers()
        self.hyperv = HyperV(self.bench, self.registers, self.apic)  # type: ignore[arg-type]
        self.msrs = Msrs()
        self.hyperv.install(self.msrs)

    def read(self, index: int) -> int | None:
        return self.msrs.read(index)

    def write(self, index: int, value: int) -> bool:
        return self.msrs.write(index, value)

    def call(self, control: int, first: int) -> int:
        return self.hyperv.call(control, first)
