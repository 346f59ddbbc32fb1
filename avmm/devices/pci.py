"""PCI as software finds it on a 440FX machine: configuration mechanism #1 and the functions of bus 0.

PCI Local Bus Specification 2.1, 3.7.4.1 (mechanism #1: CF8h, CFCh) and chapter 6 (configuration space); Intel 82441FX
(i440FX host bridge), 82371SB (PIIX3: ISA bridge) and 82371AB (PIIX4: IDE, power management) datasheets. CF9h is the
PIIX reset control register.

The invariant: a configuration byte changes only where its function's write mask has ones; a function that is not there
reads as all-ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from avmm.devices.device import Board, Device, PortRange

CONFIG_ADDRESS: Final = 0xCF8
RESET_CONTROL: Final = 0xCF9
CONFIG_DATA: Final = 0xCFC

ENABLE: Final = 1 << 31
RESET_CPU: Final = 0x04
FULL_RESET: Final = 0x02

# offsets in configuration space
COMMAND: Final = 0x04
STATUS: Final = 0x06
HEADER_TYPE: Final = 0x0E
BAR: Final = 0x10
INTERRUPT_LINE: Final = 0x3C

IO_ENABLE: Final = 0x0001
HYPERV_VIDEO_BAR: Final = 0xF7800000
HYPERV_VIDEO_SIZE: Final = 8 << 20
MULTIFUNCTION: Final = 0x80

OnMap = Callable[["PciFunction", int | None], None]
OnWrite = Callable[["PciFunction", int, int], None]


def _not_mapped(function: PciFunction, base: int | None) -> None:
    pass


def _not_written(function: PciFunction, offset: int, size: int) -> None:
    pass


class PciFunction:
    """One function: 256 bytes of configuration space with a write mask, and write-one-to-clear bits in ``clear``.

    ``ids`` are the vendor and the device identification.

    ``on_map(function, base)`` hears where its I/O BAR is now, None when it is disabled or zero; ``on_write(function,
    offset, size)`` hears every configuration write after it took effect (PAM and PIRQ registers have consequences).
    """

    def __init__(self, name: str, slot: int, function: int, ids: tuple[int, int], class_code: int, *, revision: int = 0) -> None:
        self.name = name
        self.slot = slot
        self.function = function
        self.config = bytearray(256)
        self.mask = bytearray(256)
        self.clear = bytearray(256)
        self.on_map: OnMap = _not_mapped
        self.on_write: OnWrite = _not_written
        self.base: int | None = None
        """Where the I/O BAR is visible now."""
        self._io_bar = 0
        struct.pack_into("<HH", self.config, 0, *ids)
        struct.pack_into("<I", self.config, 8, class_code << 8 | revision)
        self._initial = bytes(self.config)

    def set(self, offset: int, data: bytes, mask: bytes = b"") -> None:
        """Give registers their power-on value, and make the ones in ``mask`` writable."""
        self.config[offset : offset + len(data)] = data
        self.mask[offset : offset + len(mask)] = mask
        self._initial = bytes(self.config)

    def add_io_bar(self, index: int, size: int) -> None:
        """Give the function its I/O base address register: ``size`` ports (a power of two, at least 4)."""
        self._io_bar = BAR + 4 * index
        self.set(self._io_bar, b"\x01\0\0\0", struct.pack("<I", -size & 0xFFFFFFFC))

    def read(self, offset: int, size: int) -> int:
        """Read ``size`` bytes of configuration space; bytes past its end are all-ones."""
        return int.from_bytes(bytes(self.config[offset : offset + size]).ljust(size, b"\xff"), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Write ``size`` bytes of configuration space, as far as they are writable."""
        for index, byte in enumerate(value.to_bytes(size, "little"), offset):
            if index < 256:
                mask = self.mask[index]
                self.config[index] = (self.config[index] & ~mask | byte & mask) & ~(byte & self.clear[index])
        self.on_write(self, offset, size)
        self._map()

    def _map(self) -> None:
        base = None
        if self._io_bar and self.config[COMMAND] & IO_ENABLE:
            (bar,) = struct.unpack_from("<I", self.config, self._io_bar)
            base = bar & 0xFFFC or None
            if bar >> 16:
                base = None  # beyond the processor's 64 KiB of I/O space, as while its size is being asked for
        if base != self.base:
            self.base = base
            self.on_map(self, base)

    def reset(self) -> None:
        """Go to the state after RST#."""
        self.config[:] = self._initial
        self._map()

    def restore(self, config: bytes) -> None:
        """Take saved configuration space; the BAR is announced where it was."""
        if len(config) != 256 or config[:4] != self._initial[:4]:
            raise ValueError(f"the saved configuration space is not that of {self.name}")
        self.config[:] = config
        self._map()


def host_bridge() -> PciFunction:
    """Return the 82441FX at 00:00.0. Its PAM (59h-5Fh) and SMRAM (72h) registers are stored; ``on_write`` can act on them."""
    function = PciFunction("i440fx", 0, 0, (0x8086, 0x1237), 0x060000, revision=2)
    function.set(COMMAND, b"\x06\x00\x80\x02", b"\x00\x01")
    function.set(0x50, bytes(0x30), b"\xff" * 0x30)  # PMCCFG ... SMRAM, ERRCMD
    function.set(0x72, b"\x02", b"\x7f")
    return function


def isa_bridge() -> PciFunction:
    """Return the PIIX3's ISA bridge at 00:01.0, with the PIRQ route registers (60h-63h)."""
    function = PciFunction("piix3", 1, 0, (0x8086, 0x7000), 0x060100)
    function.set(COMMAND, b"\x07\x00\x00\x02", b"\x08\x01")
    function.set(HEADER_TYPE, bytes((MULTIFUNCTION,)))
    function.set(0x4C, b"\x4d\x00\x03\x00", b"\x7f\x00\xff\xff")  # IORT, XBCS
    function.set(0x60, b"\x80" * 4, b"\x8f" * 4)
    function.set(0x69, b"\x02", b"\xfe")  # top of memory
    function.set(0x70, b"\x80\x80", b"\xff\xff")  # MBIRQ
    function.set(0x76, b"\x0c\x0c", b"\x87\x87")  # MBDMA
    function.set(0x78, bytes(2), b"\xff\xff")  # PCSC
    function.set(0x82, b"\x00", b"\x07")  # DLC
    function.set(0xA0, b"\x08", b"\x1f")  # SMICNTL
    return function


def pirq_route(function: PciFunction, pirq: int) -> int | None:
    """Return the ISA interrupt that PIRQA-D (0-3) is routed to by the ISA bridge, None when it is not."""
    route = function.config[0x60 + (pirq & 3)]
    return None if route & 0x80 else route & 0x0F


def ide_function(on_map: OnMap = _not_mapped) -> PciFunction:
    """Return the PIIX4's IDE function at 00:01.1: legacy ports and interrupts, bus master I/O at BAR 4, Ultra DMA/33."""
    function = PciFunction("piix4-ide", 1, 1, (0x8086, 0x7111), 0x010180, revision=1)
    function.set(COMMAND, b"\x00\x00\x80\x02", b"\x05\x00")
    function.clear[STATUS + 1] = 0x38  # aborts
    function.add_io_bar(4, 16)
    function.set(0x40, b"\x00\x80\x00\x80\x00", b"\xff" * 5)  # IDETIM with both channels decoded, SIDETIM
    function.set(0x48, bytes(4), b"\x0f\x00\x33\x33")  # UDMACTL, UDMATIM
    function.on_map = on_map
    return function


def power_management(pm_base: int = 0x600) -> PciFunction:
    """Return the PIIX4's power management function at 00:01.3; its ports are fixed at ``pm_base`` (PMBA is read-only)."""
    function = PciFunction("piix4-pm", 1, 3, (0x8086, 0x7113), 0x068000, revision=3)
    function.set(COMMAND, b"\x00\x00\x80\x02", b"\x01\x00")
    function.set(INTERRUPT_LINE, b"\x09\x01", b"\xff\x00")  # SCI: IRQ 9, INTA#
    function.set(0x40, struct.pack("<I", pm_base | 1))
    function.set(0x58, bytes(4), b"\xff" * 4)  # DEVACTB
    function.set(0x80, b"\x01", b"\x01")  # PMREGMISC: PMIOSE
    function.set(0x90, b"\x01\0\0\0", b"\xf0\xff\0\0")  # SMBBA
    function.set(0xD2, b"\x00", b"\xff")  # SMBHSTCFG
    return function


def hyperv_video() -> PciFunction:
    """Return Hyper-V's video function (1414:5353) at 00:08.0, by which its guests of the first generation know that they may look for
    their monitor on VMBus. BAR 0 asks for memory that nothing needs: the frame buffer appears where the guest says on VMBus.
    """
    function = PciFunction("hyperv-video", 8, 0, (0x1414, 0x5353), 0x038000)
    function.set(COMMAND, b"\x02\x00\x00\x02", b"\x07\x00")
    function.set(BAR, struct.pack("<I", HYPERV_VIDEO_BAR), struct.pack("<I", -HYPERV_VIDEO_SIZE & 0xFFFFFFF0))
    return function


@dataclass(frozen=True, slots=True)
class State:
    """The saved host: address register and every function's configuration space."""

    address: int
    reset_control: int
    functions: tuple[tuple[int, int, bytes], ...]
    """(slot, function, configuration space)"""
    version: int = 1


class PciHost(Device):
    """Configuration mechanism #1 in front of the functions of bus 0."""

    name = "pci"
    ports = (PortRange(CONFIG_ADDRESS, 4, 4), PortRange(CONFIG_DATA, 4, 4))

    def __init__(self, board: Board, functions: Sequence[PciFunction]) -> None:
        super().__init__(board)
        self.address = 0
        self.reset_control = 0
        self.functions: dict[int, PciFunction] = {}
        """By bits 8-23 of the address register: bus 0, slot, function."""
        for function in functions:
            key = function.slot << 3 | function.function
            if key in self.functions or function.slot > 31 or function.function > 7:
                raise ValueError(f"PCI function {function.name} has no place of its own at 00:{function.slot:02x}.{function.function}")
            self.functions[key] = function

    def _target(self) -> PciFunction | None:
        return self.functions.get(self.address >> 8 & 0xFFFF) if self.address & ENABLE else None

    def plain(self, port: int, size: int, value: int | None = None) -> bool:
        """The address that says which register the data are of."""
        return port == CONFIG_ADDRESS and size == 4 and value is not None

    def read(self, port: int, size: int) -> int:
        ones = (1 << 8 * size) - 1
        if port == RESET_CONTROL and size == 1:
            return self.reset_control
        if port < CONFIG_DATA:
            return self.address if port == CONFIG_ADDRESS and size == 4 else ones
        function = self._target()
        if function is None:
            return ones
        offset, inside = self._window(port, size)
        return function.read(offset, inside) | ones & ~((1 << 8 * inside) - 1)

    def write(self, port: int, size: int, value: int) -> None:
        if port == RESET_CONTROL and size == 1:
            self._control_reset(value)
        elif port == CONFIG_ADDRESS and size == 4:
            self.address = value & 0x80FFFFFC
        elif port >= CONFIG_DATA:
            function = self._target()
            if function is not None:
                offset, inside = self._window(port, size)
                function.write(offset, inside, value & (1 << 8 * inside) - 1)

    def _window(self, port: int, size: int) -> tuple[int, int]:
        """Return where in configuration space an access starts and how many of its bytes are in the data register."""
        byte = port & 3
        return self.address & 0xFC | byte, min(size, 4 - byte)

    def _control_reset(self, value: int) -> None:
        """RCR: bit 2 going from zero to one resets the processor, with bit 1 the whole machine; one reset serves for both."""
        was = self.reset_control
        self.reset_control = value & (RESET_CPU | FULL_RESET)
        if value & RESET_CPU and not was & RESET_CPU:
            self.board.reset("port CF9h, hard" if value & FULL_RESET else "port CF9h, soft")

    def reset(self) -> None:
        self.address = self.reset_control = 0
        for function in self.functions.values():
            function.reset()

    def save(self) -> State:
        functions = tuple((f.slot, f.function, bytes(f.config)) for f in self.functions.values())
        return State(self.address, self.reset_control, functions)

    def restore(self, state: State) -> None:
        saved = {slot << 3 | function: config for slot, function, config in state.functions}
        if state.version != 1 or saved.keys() != self.functions.keys():
            raise ValueError("pci: the saved machine has other PCI functions, or its version is not known")
        for key, function in self.functions.items():
            function.restore(saved[key])
        self.address, self.reset_control = state.address, state.reset_control
