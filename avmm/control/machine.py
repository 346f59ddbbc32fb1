"""Putting a PC together: which devices there are, how they are wired, and how it starts.

The wiring is that of an i440FX/PIIX PC: a pair of 8259As behind the local APIC's LINT0, an I/O APIC beside them, ISA
devices, two IDE channels with bus mastering on PCI. The disks belong to VM-H.

The invariant: devices are made here and nowhere else, and each is plugged in exactly once.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from avmm.boot import acpi, firmware, layout, linux, multiboot
from avmm.boot.bios.bios import Bios
from avmm.boot.bios.drives import BiosDrive
from avmm.boot.bios.video import VideoServices
from avmm.boot.bios.video_rom import video_rom
from avmm.boot.errors import BootError
from avmm.clock import MICROSECOND
from avmm.control.config import MIB, ConfigError, Disk, VmConfig, parse_size
from avmm.cpu.engine import Callbacks, CpuState, Processor
from avmm.cpu.script import Guest, ScriptProcessor
from avmm.cpu.unicorn.processor import UnicornProcessor
from avmm.devices.ata.busmaster import BusMaster
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.drive import AtaDisk, AtapiCdrom, Drive
from avmm.devices.debug import DebugConsole, PostCode
from avmm.devices.device import Device
from avmm.devices.fw_cfg import FwCfg, e820_file, standard_items
from avmm.devices.i8042 import I8042
from avmm.devices.ioapic import IoApic
from avmm.devices.lapic import LocalApic
from avmm.devices.line import InterruptLine
from avmm.devices.pci import PciFunction, PciHost, host_bridge, ide_function, isa_bridge, power_management
from avmm.devices.pic import Pic
from avmm.devices.pit import Pit
from avmm.devices.power import AcpiPower
from avmm.devices.rtc import Rtc
from avmm.devices.speaker import Speaker
from avmm.devices.uart import Uart
from avmm.devices.vga.font import font
from avmm.devices.vga.vga import Vga
from avmm.host.service import ServiceOs
from avmm.host.virtualization_driver import Disk as HostDisk
from avmm.hypervisor.features import APIC_BASE
from avmm.hypervisor.partition import Partition

ISA_LINES = 16
IOAPIC_INPUTS = 24
TIMER_INPUT = 2  # where IRQ 0 goes on the I/O APIC of every PC
ACPI_AT = 0xE0000
VIDEO_ROM_AT = 0xC0000
VGA_HOLE = (0xA0000, 0x20000)
OUTSIDE_BY_DEFAULT = frozenset({"ata0", "ata1", "bmide"})
VIRTUAL_EPOCH = int(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp())
SMALL, SMALL_CACHE, LARGE_CACHE = 32 * MIB, 1 * MIB, 24 * MIB


@dataclass(slots=True)
class Machine:
    """The parts of one PC that others need to reach."""

    partition: Partition
    service: ServiceOs
    vga: Vga
    keyboard: I8042
    uart: Uart
    power: AcpiPower
    speaker: Speaker
    debug: DebugConsole
    rtc: Rtc
    disks: list[HostDisk] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """What the disks are called in VM-H."""
    boot_failure: str = ""
    """Why the built-in BIOS found nothing to boot."""

    async def close(self) -> None:
        """Give back disks, tasks and memory. The machine must have ended."""
        for device in self.partition.devices.values():
            outside = self.service.outside.get(device)
            if outside is not None:
                await self.service.remove(outside)
        for name in self.names:
            await self.service.close_disk(name)
        self.partition.close()


async def assemble(config: VmConfig, service: ServiceOs, guest: Guest | None = None) -> Machine:
    """Make a PC as described, switched off. ``guest`` runs as the scripted processor's coroutine instead of real code.

    Raises ConfigError, BootError, ImageError or ProcessorError, each one sentence; then nothing is left behind.
    """
    if config.name in (vm.split("/")[0] for vm in service.disks):
        raise ConfigError(f"there is a machine called {config.name} already: give this one another name")
    names: list[str] = []

    async def attach(kind: str, disk: Disk) -> HostDisk:
        name = f"{config.name}/{kind}"
        opened = await service.open_disk(name, disk.path, disk.mode, disk.overlay)
        names.append(name)
        return opened

    try:
        disks = [await attach(f"disk{i}", disk) for i, disk in enumerate(config.disks)]
        floppies = [await attach(f"floppy{i}", disk) for i, disk in enumerate(config.floppies)]
        cdrom = await attach("cdrom", Disk(config.cdrom, "ro")) if config.cdrom is not None else None
        machine = _build(config, service, disks, floppies, cdrom, guest)
    except BaseException:
        for name in names:
            await service.close_disk(name)
        raise
    machine.names = names
    return machine


def _processor(config: VmConfig, guest: Guest | None) -> Callable[[Callbacks, bool], Processor]:
    cache = parse_size(config.code_cache) or (SMALL_CACHE if config.memory_bytes <= SMALL else LARGE_CACHE)

    def make(callbacks: Callbacks, virtual: bool) -> Processor:
        if guest is not None:
            return ScriptProcessor(callbacks, guest)
        return UnicornProcessor(callbacks, virtual_time=virtual, code_cache=cache)

    return make


def _build(
    config: VmConfig, service: ServiceOs, disks: list[HostDisk], floppies: list[HostDisk], cdrom: HostDisk | None, guest: Guest | None
) -> Machine:
    partition = Partition(
        config.name,
        config.memory_bytes,
        virtual_time=config.clock == "virtual",
        seed=config.seed,
        slice_ns=config.slice_us * MICROSECOND,
        service=service,
        make_processor=_processor(config, guest),
        on_triple_fault=config.on_triple_fault,
    )
    partition.processor.unmap_ram(*VGA_HOLE)
    for number in range(IOAPIC_INPUTS):
        partition.line(number)

    pic = Pic(partition)
    lapic = LocalApic(partition, pic)
    ioapic = IoApic(partition, lambda vector, level, mode: lapic.inject(vector, level))
    pic.output = lapic.pic_changed
    lapic.output = partition.interrupt
    lapic.on_eoi = ioapic.eoi
    partition.controller = lapic
    partition.msrs.handlers[APIC_BASE] = (lambda: lapic.base, lapic.write_base)
    for number, line in partition.lines.items():
        _connect(line, number, pic, ioapic)

    epoch = config.epoch
    if epoch is None:
        epoch = VIRTUAL_EPOCH if config.clock == "virtual" else int(datetime.datetime.now(datetime.UTC).timestamp())
    pit = Pit(partition)
    drives = _bios_drives(config, disks, floppies, cdrom)
    rtc = Rtc(partition, epoch, config.memory_bytes, floppies=[drive.floppy_type for drive in drives if drive.floppy])
    vga, keyboard, uart, power = Vga(partition), I8042(partition), Uart(partition), AcpiPower(partition)
    debug, port_e9 = DebugConsole(partition), DebugConsole(partition, 0xE9)
    port_e9.name = "debug-e9"
    speaker = Speaker(partition, pit)
    channels = _channels(partition, disks, cdrom)
    bus_master = BusMaster(partition, channels)
    ide = ide_function(lambda function, base: _move(partition, bus_master, base))
    pci = PciHost(partition, [host_bridge(), isa_bridge(), ide, power_management()])

    machine = Machine(partition, service, vga, keyboard, uart, power, speaker, debug, rtc, [*disks, *floppies])
    parts: list[Device] = [pic, lapic, ioapic, pit, rtc, keyboard, vga, uart, power, debug, port_e9, PostCode(partition), speaker]
    parts += [*channels, bus_master, pci]
    vga.reset()  # maps its memory
    for device in parts:
        _plug(partition, service, config, device)
    _start_with(machine, config, drives)
    return machine


def _connect(line: InterruptLine, number: int, pic: Pic, ioapic: IoApic) -> None:
    apic_input = ioapic.inputs[TIMER_INPUT if number == 0 else number]
    if number >= ISA_LINES or number == TIMER_INPUT:
        line.connect(apic_input if number != TIMER_INPUT else None)
        return
    pic_input = pic.inputs[number]

    def both(level: bool) -> None:
        pic_input(level)
        apic_input(level)

    line.connect(both)


def _channels(partition: Partition, disks: list[HostDisk], cdrom: HostDisk | None) -> list[AtaChannel]:
    """Place the drives: disks from the primary master on; the CD-ROM as secondary master, or in the first place that is free."""
    places: list[Drive | None] = [None] * 4
    for i, disk in enumerate(disks):
        places[i] = AtaDisk(disk, serial=f"AVMM{i + 1:05}")
    if cdrom is not None:
        places[2 if places[2] is None else 3] = AtapiCdrom(cdrom)
    return [AtaChannel(partition, 0, places[:2]), AtaChannel(partition, 1, places[2:])]


def _move(partition: Partition, device: BusMaster, base: int | None) -> None:
    """The guest's PCI driver moved an I/O BAR."""
    ports = device.ports
    device.move(base)
    partition.move_ports(device, ports)


def _plug(partition: Partition, service: ServiceOs, config: VmConfig, device: Device) -> None:
    place = config.placement.get(device.name, "service" if device.name in OUTSIDE_BY_DEFAULT else "hypervisor")
    if place not in ("hypervisor", "service"):
        raise ConfigError(f"{device.name} cannot be placed in {place!r}: choose hypervisor or service")
    if place == "service":
        service.add(device, f"{config.name}/{device.name}")
    partition.plug(device, inside=place == "hypervisor")


def _bios_drives(config: VmConfig, disks: list[HostDisk], floppies: list[HostDisk], cdrom: HostDisk | None) -> list[BiosDrive]:
    """The drives as the BIOS numbers them, in boot order."""
    groups = {
        "a": [BiosDrive(i, disk) for i, disk in enumerate(floppies)],
        "c": [BiosDrive(0x80 + i, disk) for i, disk in enumerate(disks)],
        "d": [BiosDrive(0xE0, cdrom)] if cdrom is not None else [],
    }
    order = config.boot or "acd"
    if not set(order) <= set(groups):
        raise ConfigError(f"cannot read {order!r} as a boot order: letters a (floppy), c (disk), d (CD-ROM)")
    letters = [*dict.fromkeys(order), *(letter for letter in groups if letter not in order)]
    return [drive for letter in letters for drive in groups[letter]]


def _start_with(machine: Machine, config: VmConfig, drives: list[BiosDrive]) -> None:
    """Choose what the processor starts with: a kernel, a firmware image, or the built-in BIOS."""
    partition = machine.partition
    if config.bios == "builtin":
        video = VideoServices(partition.processor, partition.memory, machine.vga)

        def failed(reason: str) -> None:
            machine.boot_failure = reason

        bios = Bios(
            partition, partition.processor, partition.ports, video, drives,
            memory_size=config.memory_bytes, memory_map=layout.memory_map(config.memory_bytes),
            font_8x8=font(8)[:1024], on_boot_failure=failed,
        )  # fmt: skip
        partition.plug(bios)
        if config.kernel is not None:
            partition.boot_state = _kernel_start(machine, config, bios, video)
            return

        def power_on() -> CpuState:
            machine.boot_failure = ""
            _install(partition, bios)
            if config.acpi:
                _place_acpi(partition)
            return bios.start_state()

        partition.boot_state = power_on
        return
    if config.kernel is not None:
        raise ConfigError("a kernel is started by the built-in BIOS: leave --bios away")
    partition.boot_state = _firmware_start(machine, config)


def _install(partition: Partition, bios: Bios) -> None:
    bios.install()
    partition.memory.write(VIDEO_ROM_AT, video_rom())


def _place_acpi(partition: Partition) -> int:
    blob, rsdp = acpi.build(partition.memory.size, ACPI_AT)
    partition.memory.write(ACPI_AT, blob)
    return rsdp


def read_file(path: str | Path, what: str) -> bytes:
    """Return a file's bytes. ConfigError in one sentence when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from None


def _kernel_start(machine: Machine, config: VmConfig, bios: Bios, video: VideoServices) -> Callable[[], CpuState]:
    partition = machine.partition
    assert config.kernel is not None
    kernel = read_file(config.kernel, "the kernel")
    initrd = read_file(config.initrd, "the initrd") if config.initrd is not None else None
    is_linux = kernel[0x202:0x206] == b"HdrS" or kernel[:5] == b"\x7fELF\x02"
    if not is_linux:
        try:
            multiboot.find_header(kernel)
        except BootError:
            raise BootError(f"{config.kernel} is no kernel: neither a Linux bzImage or vmlinux nor a multiboot image") from None

    def start() -> CpuState:
        _install(partition, bios)
        video.set_mode(3)
        rsdp = _place_acpi(partition) if config.acpi else None
        size = config.memory_bytes
        if is_linux:
            return linux.load(partition.memory, size, kernel, initrd, config.append, rsdp)
        modules = [(initrd, Path(config.initrd).name)] if initrd is not None and config.initrd is not None else []
        return multiboot.load(partition.memory, size, kernel, config.append, modules)

    return start


def _firmware_start(machine: Machine, config: VmConfig) -> Callable[[], CpuState]:
    partition = machine.partition
    seabios = config.bios == "seabios"
    image = read_file(firmware.find(firmware.SEABIOS) if seabios else config.bios, "the firmware")
    high = firmware.high_image(image)
    partition.processor.map_ram((1 << 32) - len(image), high)
    video_bios = config.vgabios or firmware.find(firmware.VGABIOS)
    files = {"vgaroms/vgabios-isavga.bin": read_file(video_bios, "the video BIOS"), "etc/e820": e820_file(config.memory_bytes)}
    partition.plug(FwCfg(partition, standard_items(config.memory_bytes), files))
    low = image[-0x20000:]

    def start() -> CpuState:
        high[:] = image
        partition.memory.write(0x100000 - len(low), low)
        return CpuState()

    return start
