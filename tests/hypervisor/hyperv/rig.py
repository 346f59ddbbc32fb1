"""The enlightened interface on a bench: a real local APIC, and no processor."""

from __future__ import annotations

from avmm.cpu.engine import Callbacks
from avmm.devices.lapic import LocalApic
from avmm.hypervisor.features import Msrs
from avmm.hypervisor.hyperv.hyperv import HyperV
from tests.devices.bench import Bench


class NoPic:
    """Nothing on LINT0."""

    intr = False

    def acknowledge(self) -> int | None:
        return None


class NoProcessor:
    """A processor of which only the callbacks are looked at."""

    def __init__(self) -> None:
        self.callbacks = Callbacks(*[None] * 9)  # type: ignore[arg-type]


class Rig:
    """A bench with the interface on it. ``write`` and ``read`` are WRMSR and RDMSR."""

    def __init__(self, ram: int = 8 << 20) -> None:
        self.bench = Bench(ram)
        self.memory = self.bench.memory
        self.apic = LocalApic(self.bench, NoPic())
        self.apic.write_memory(0xFEE000F0, 4, 0x1FF)
        self.hyperv = HyperV(self.bench, NoProcessor(), self.apic)  # type: ignore[arg-type]
        self.msrs = Msrs()
        self.hyperv.install(self.msrs)

    def read(self, index: int) -> int | None:
        return self.msrs.read(index)

    def write(self, index: int, value: int) -> bool:
        return self.msrs.write(index, value)

    def call(self, control: int, first: int) -> int:
        return self.hyperv.call(control, first)
