"""The BIOS as one device: a private port behind the ROM's stubs, and the services that answer there.

The ROM (rom.py) is guest code of a few bytes a vector; everything else is done here by the VMM on the same devices, memory and
disks the guest sees. Which service an OUT means is told by its address in the ROM. A service that has to wait for a disk
returns an awaitable, and the vCPU stands still inside the OUT; one that waits for an interrupt lets its stub HLT.
The invariant: an OUT to the private port from anywhere but the ROM does nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from avmm.boot.bios import bda, cmos
from avmm.boot.bios.boot import BootServices, ImageInDisk
from avmm.boot.bios.caller import Caller, PortAccess
from avmm.boot.bios.clock import ClockServices
from avmm.boot.bios.disk import DiskServices, Emulation
from avmm.boot.bios.drives import BiosDrive, Geometry
from avmm.boot.bios.keyboard import Keyboard
from avmm.boot.bios.mouse import Mouse
from avmm.boot.bios.pci import PciServices
from avmm.boot.bios.post import end_of_interrupt, initialize_hardware
from avmm.boot.bios.rom import CALLS, PRIVATE_PORT, ROM_SEGMENT, Service, rom_image
from avmm.boot.bios.serial import SerialServices, no_printer
from avmm.boot.bios.system import MemoryMap, SystemServices, default_map
from avmm.cpu.engine import CpuState, Processor, Segment
from avmm.devices.block import BlockError
from avmm.devices.device import Board, Device, PortRange


class VideoServicesProtocol(Protocol):
    """Int 10h."""

    def call(self) -> None:
        """Do the function in AH with the caller's registers."""


@dataclass(frozen=True)
class State:
    """What the BIOS does not keep in guest memory."""

    version: int = 1
    boot_index: int = 0
    boot_failure: str = ""
    deadlines: tuple[tuple[int, int], ...] = ()
    geometries: tuple[tuple[int, Geometry | None], ...] = ()
    emulation: Emulation | None = None
    image: tuple[int, int, int, int] | None = None
    """The El Torito image served as a drive: number, CD drive, first sector, sectors."""


class Bios(Device):
    """The built-in BIOS services."""

    name = "bios"
    ports = (PortRange(PRIVATE_PORT, 1),)

    def __init__(
        self,
        board: Board,
        cpu: Processor,
        ports: PortAccess,
        video: VideoServicesProtocol,
        disks: Sequence[BiosDrive],
        *,
        memory_size: int,
        serial: Sequence[int] = (0x3F8,),
        memory_map: MemoryMap | None = None,
        mouse: bool = True,
        font_8x8: bytes = b"",
        on_boot_failure: Callable[[str], None] | None = None,
    ) -> None:
        """``disks`` are in boot order; ``serial`` are the COM ports' addresses; ``font_8x8`` goes to F000:FA6E and int 43h."""
        super().__init__(board)
        self.cpu = cpu
        self.bus = ports
        self.video = video
        self.serial_ports = tuple(serial)
        self.font_8x8 = font_8x8
        self.on_boot_failure = on_boot_failure
        self.boot_order = tuple(disks)
        memory = board.memory
        self.caller = Caller(cpu, memory)
        self.disks = DiskServices(self.caller, list(disks))
        self.clocks = ClockServices(self.caller, memory, ports)
        self.keyboard = Keyboard(self.caller, memory, lambda: board.reset("Ctrl-Alt-Del"))
        self.mouse = Mouse(self.caller, memory, ports) if mouse else None
        self.pci = PciServices(self.caller, ports)
        self.serial = SerialServices(self.caller, memory, ports, board.clock)
        self.system = SystemServices(
            self.caller,
            memory,
            ports,
            self.clocks,
            self.mouse,
            memory_size=memory_size,
            memory_map=default_map(memory_size) if memory_map is None else memory_map,
        )
        self.boot = BootServices(self.caller, self.disks, self.boot_order, self.teletype, self._boot_failed)
        self._handlers = self._table()

    def _table(self) -> dict[Service, Callable[[], Awaitable[None] | None]]:
        return {
            Service.POST: self._post,
            Service.TIMER: self.clocks.tick,
            Service.TIMER_EOI: self.clocks.tick_done,
            Service.KEYBOARD_IRQ: self.keyboard.interrupt,
            Service.KEYBOARD_PAUSED: self.keyboard.paused,
            Service.HARDWARE: self._end_of_interrupt,
            Service.DISKETTE_IRQ: self._diskette_interrupt,
            Service.RTC_IRQ: self.clocks.rtc_interrupt,
            Service.MOUSE_IRQ: self._mouse_interrupt,
            Service.FPU_IRQ: self._coprocessor_interrupt,
            Service.FIXED_DISK_IRQ: self._fixed_disk_interrupt,
            Service.VIDEO: self.video.call,
            Service.EQUIPMENT: self.system.equipment,
            Service.MEMORY_SIZE: self.system.base_memory,
            Service.DISK: self.disks.call,
            Service.SERIAL: self.serial.call,
            Service.SERIAL_WAIT: self.serial.poll,
            Service.SYSTEM: self.system.call,
            Service.SYSTEM_WAIT: self.system.poll_wait,
            Service.KEYBOARD: self.keyboard.call,
            Service.PRINTER: lambda: no_printer(self.caller),
            Service.BOOT_NEXT: self.boot.next,
            Service.BOOT: self.boot.first,
            Service.CLOCK: self._clock,
        }

    # -- what the machine needs

    def install(self) -> None:
        """Write the ROM image to F0000h. POST, the first thing the guest executes, does the rest: vectors, data areas, chips."""
        self.board.memory.write(ROM_SEGMENT << 4, rom_image(self.font_8x8))

    def start_state(self) -> CpuState:
        """The state of RESET#, with CS where the ROM is mapped below 1 MiB."""
        return CpuState(cs=Segment(ROM_SEGMENT, ROM_SEGMENT << 4, 0xFFFF, 0x9B))

    @property
    def boot_failed(self) -> bool:
        """Whether nothing bootable was found."""
        return bool(self.boot.failure)

    def write(self, port: int, size: int, value: int) -> Awaitable[None] | None:
        code = self.cpu.segment("cs")
        service = CALLS.get(self.cpu.register("rip") & 0xFFFF) if code.base == ROM_SEGMENT << 4 else None
        if service is None:
            self.board.trace("bios.stray", cs=code.selector, ip=self.cpu.register("rip"))
            return None
        return self._handlers[service]()

    def teletype(self, text: str) -> None:
        """Write ``text`` to the screen as int 10h AH=0Eh does; the caller's AX and BX are kept."""
        ax, bx = self.caller["ax"], self.caller["bx"]
        for character in text.encode("cp437", "replace"):
            self.caller["ax"], self.caller["bx"] = 0x0E00 | character, 0x0007
            self.video.call()
        self.caller["ax"], self.caller["bx"] = ax, bx

    # -- POST

    def _post(self) -> Awaitable[None] | None:
        """Begin after reset. CMOS 0Fh tells whether a program only wanted back from protected mode (05h, 0Ah)."""
        rtc = cmos.Cmos(self.bus)
        shutdown = rtc[cmos.SHUTDOWN]
        rtc[cmos.SHUTDOWN] = 0
        if shutdown in (0x05, 0x0A):
            if shutdown == 0x05:
                end_of_interrupt(self.bus)
            self.cpu.set_register("al", 1)
            return None
        return self._cold_start(rtc)

    async def _cold_start(self, rtc: cmos.Cmos) -> None:
        memory = self.board.memory
        fixed = sorted((drive for drive in self.boot_order if drive.fixed), key=lambda drive: drive.number)
        self.disks.drives = {drive.number: drive for drive in self.boot_order}
        self.disks.emulation = None
        self.boot.failure = ""
        for drive in fixed:
            await self._learn(drive)
        bda.install(
            memory,
            coms=self.serial_ports,
            floppies=self.disks.floppies,
            fixed=self.disks.fixed,
            mouse=self.mouse is not None,
            font_8x8=bool(self.font_8x8),
        )
        for index, drive in enumerate(fixed[:2]):
            memory.write(bda.FIXED_DISK_TABLES + 16 * index, drive.parameter_table())
        initialize_hardware(self.bus)
        memory.pack("<I", bda.TICKS, self.clocks.cmos.ticks_of_day())
        if self.mouse is not None:
            self.mouse.prepare()
        self.cpu.set_register("ax", 0x0003)
        self.video.call()  # sets the mode, the video data area and the fonts' vectors
        self.cpu.set_register("ax", 0)

    async def _learn(self, drive: BiosDrive) -> None:
        try:
            drive.learn(bytes(await drive.disk.read(0, 1)) if drive.disk.sectors else b"")
        except BlockError as error:
            self.board.trace("bios.unreadable", drive=drive.number, reason=error.fault.value)

    def _boot_failed(self, reason: str) -> None:
        self.board.trace("bios.no-boot", reason=reason)
        if self.on_boot_failure is not None:
            self.on_boot_failure(reason)

    # -- interrupts and dispatch

    def _end_of_interrupt(self) -> None:
        end_of_interrupt(self.bus)

    def _diskette_interrupt(self) -> None:
        memory = self.board.memory
        memory.write(bda.DISKETTE_SEEK, bytes((memory.read(bda.DISKETTE_SEEK, 1)[0] | 0x80,)))
        self.bus.write(0x20, 1, 0x20)

    def _fixed_disk_interrupt(self) -> None:
        self.board.memory.write(bda.DISK_INTERRUPT, b"\xff")
        self.bus.write(0xA0, 1, 0x20)
        self.bus.write(0x20, 1, 0x20)

    def _coprocessor_interrupt(self) -> None:
        self.bus.write(0xF0, 1, 0)  # clear the busy latch; the stub goes on to int 2
        self.bus.write(0xA0, 1, 0x20)
        self.bus.write(0x20, 1, 0x20)

    def _mouse_interrupt(self) -> None:
        if self.mouse is not None:
            self.mouse.interrupt()
        else:
            end_of_interrupt(self.bus)
            self.caller["al"] = 0

    def _clock(self) -> None:
        if self.caller["ah"] == 0xB1:
            self.pci.call()
        else:
            self.clocks.call()

    # -- lifecycle

    def reset(self) -> None:
        """RESET#: the ROM is as it was; what POST sets it will set again."""
        self.serial.deadlines.clear()
        self.boot.index = 0
        self.boot.failure = ""
        self.install()

    def save(self) -> State:
        image = None
        boot = self.disks.emulation
        if boot is not None and isinstance(served := self.disks.drives[boot.drive].disk, ImageInDisk):
            owner = next(drive.number for drive in self.boot_order if drive.disk is served.disk)
            image = (boot.drive, owner, served.first, served.length)
        return State(
            boot_index=self.boot.index,
            boot_failure=self.boot.failure,
            deadlines=tuple(sorted(self.serial.deadlines.items())),
            geometries=tuple((drive.number, drive.chosen) for drive in self.disks.drives.values()),
            emulation=boot,
            image=image,
        )

    def restore(self, state: Any) -> None:
        if not isinstance(state, State) or state.version != 1:
            raise ValueError("not the state of a BIOS, version 1")
        drives = {drive.number: drive for drive in self.boot_order}
        if state.image is not None:
            number, owner, first, sectors = state.image
            if owner not in drives:
                raise ValueError(f"the state was saved after booting from drive {owner:02X}h, which is not there")
            drives[number] = BiosDrive(number, ImageInDisk(drives[owner].disk, first, sectors))
        if {number for number, _ in state.geometries} != set(drives):
            raise ValueError("the BIOS state was saved with other drives")
        for number, geometry in state.geometries:
            drives[number].chosen = geometry
        self.disks.drives = drives
        self.disks.emulation = state.emulation
        self.boot.index = state.boot_index
        self.boot.failure = state.boot_failure
        self.serial.deadlines = dict(state.deadlines)
