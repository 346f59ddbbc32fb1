"""What answers each guest-physical address of a Unicorn processor: RAM, or the memory callbacks.

Unicorn maps and unmaps whole pieces only; where a part of one goes, the rest is mapped again.

The invariant: pieces never overlap, and behind :meth:`MemoryMap.cover` no address below 1 << PHYSICAL_BITS is without one.
"""

from __future__ import annotations

import ctypes
from typing import Any

from avmm.cpu.engine import ProcessorError
from avmm.cpu.unicorn._shim import Vcpu

PHYSICAL_BITS = 40  # what CPUID tells the guest; RAM and memory-mapped I/O lie below 1 << PHYSICAL_BITS


def host_address(buffer: memoryview) -> tuple[Any, int]:
    """Return where a buffer is in this process, behind an object that keeps it there."""
    pin = ctypes.c_char.from_buffer(buffer)
    return pin, ctypes.addressof(pin)


class MemoryMap:
    """The pieces of one processor; its engines, one after another, are told of them."""

    def __init__(self) -> None:
        self._ram: dict[int, tuple[memoryview, Any]] = {}
        self._io: dict[int, int] = {}

    def renew(self, vcpu: Vcpu) -> None:
        """Give a new engine the same RAM."""
        ram, self._ram, self._io = self._ram, {}, {}
        for address, (buffer, _) in ram.items():
            self.add_ram(vcpu, address, buffer)

    def clear(self) -> None:
        """Let go of all RAM."""
        self._ram = {}

    def ram_from(self, address: int) -> memoryview | None:
        """Return the RAM from ``address`` to the end of its piece; None when there is none."""
        for base, (buffer, _) in self._ram.items():
            if base <= address < base + len(buffer):
                return buffer[address - base :]
        return None

    def add_ram(self, vcpu: Vcpu, address: int, buffer: memoryview) -> None:
        """Add RAM where nothing is. ProcessorError when the engine does not take it."""
        pin, host = host_address(buffer)
        if not vcpu.map_ram(address, len(buffer), host):
            raise ProcessorError(f"cannot map {len(buffer)} bytes of RAM at {address:#x}")
        self._ram[address] = (buffer, pin)

    def _add_io(self, vcpu: Vcpu, base: int, size: int) -> None:
        if not vcpu.map_io(base, size):
            raise ProcessorError(f"cannot map {size} bytes of memory-mapped I/O at {base:#x}")
        self._io[base] = size

    def remove(self, vcpu: Vcpu, address: int, size: int) -> None:
        """Unmap whatever lies in a range; parts that stick out stay as they were."""
        end = address + size
        for base, (buffer, _) in list(self._ram.items()):
            if base < end and address < base + len(buffer):
                vcpu.unmap(base, len(buffer))
                del self._ram[base]
                if base < address:
                    self.add_ram(vcpu, base, buffer[: address - base])
                if base + len(buffer) > end:
                    self.add_ram(vcpu, end, buffer[end - base :])
        for base, length in list(self._io.items()):
            if base < end and address < base + length:
                vcpu.unmap(base, length)
                del self._io[base]
                if base < address:
                    self._add_io(vcpu, base, address - base)
                if base + length > end:
                    self._add_io(vcpu, end, base + length - end)

    def cover(self, vcpu: Vcpu) -> None:
        """Answer each address that is not RAM through the memory callbacks."""
        taken = sorted([(base, len(buffer)) for base, (buffer, _) in self._ram.items()] + list(self._io.items()))
        at = 0
        for base, size in [*taken, (1 << PHYSICAL_BITS, 0)]:
            if base > at:
                self._add_io(vcpu, at, base - at)
            at = base + size
