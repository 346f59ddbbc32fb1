"""Putting a PC together: which devices there are and how they are wired.

The wiring is that of an i440FX/PIIX PC: a pair of 8259As behind the local APIC's LINT0, an I/O APIC beside them, ISA
devices, two IDE channels with bus mastering on PCI. The disks belong to VM-H.

The invariant: devices are made here and nowhere else, and each is plugged in exactly once.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from avmm.boot.bios.drives import BiosDrive
from avmm.clock import MICROSECOND, VirtualClock
from avmm.control.config import MIB, ConfigError, Disk, VmConfig, parse_size
from avmm.control.machine import Machine
from avmm.control.parts import Chips
from avmm.control.physical import PhysicalDevices
from avmm.control.placement import OUTSIDE_BY_DEFAULT, add_outside, places
from avmm.control.startup import pm_base, start_with
from avmm.cpu.engine import Callbacks, Processor
from avmm.cpu.script import Guest, ScriptProcessor
from avmm.cpu.unicorn.processor import UnicornProcessor
from avmm.devices.ata.busmaster import BusMaster
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.drive import AtaDisk, AtapiCdrom, Drive, Tray
from avmm.devices.block import BlockDevice
from avmm.devices.debug import DebugConsole, PostCode
from avmm.devices.device import Device
from avmm.devices.i8042 import I8042
from avmm.devices.ioapic import IoApic
from avmm.devices.lapic import LocalApic
from avmm.devices.line import InterruptLine
from avmm.devices.pci import PciHost, host_bridge, hyperv_video, ide_function, isa_bridge, power_management
from avmm.devices.pic import Pic
from avmm.devices.pit import Pit
from avmm.devices.power import AcpiPower
from avmm.devices.rtc import Rtc
from avmm.devices.speaker import Speaker
from avmm.devices.uart import Uart
from avmm.devices.vga.vga import Vga
from avmm.host.service import ServiceOs
from avmm.host.virtualization_driver import Disk as HostDisk
from avmm.hypervisor.features import APIC_BASE
from avmm.hypervisor.image import DeviceImageError, entry_point_class
from avmm.hypervisor.partition import Partition
from avmm.hypervisor.slot import Slot

if TYPE_CHECKING:
    from avmm.control.physical.ata import PhysicalChannel
    from avmm.vmbus.bus import VmBus

ISA_LINES = 16
IOAPIC_INPUTS = 24
TIMER_INPUT = 2  # where IRQ 0 goes on the I/O APIC of every PC
SCSI_INSTANCE = UUID("0a764d6d-0001-4d4d-8001-617664736b73")
VGA_HOLE = (0xA0000, 0x20000)
BOOT_GROUPS = {"a": "floppy", "c": "disk", "d": "cdrom"}
"""The letters of a boot order, and what CMOS memory calls them."""
VIRTUAL_EPOCH = int(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp())
SMALL, SMALL_CACHE, LARGE_CACHE = 32 * MIB, 1 * MIB, 64 * MIB
"""A boot of Linux translates 22 MiB of code, and does so again where they do not fit; host memory is used as the cache fills."""


async def assemble(config: VmConfig, service: ServiceOs, guest: Guest | None = None) -> Machine:
    """Make a PC as described, switched off. ``guest`` runs as the scripted processor's coroutine instead of real code.

    Raises ConfigError, BootError, ImageError or ProcessorError, each one sentence; then nothing is left behind.
    """
    if config.name in (vm.split("/")[0] for vm in service.disks):
        raise ConfigError(f"there is a machine called {config.name} already: give this one another name")
    names: list[str] = []
    partition: Partition | None = None

    async def attach(kind: str, disk: Disk) -> BlockDevice:
        if not isinstance(disk.path, str | Path):
            return disk.path  # shared by another machine
        name = f"{config.name}/{kind}"
        opened = await service.open_disk(name, disk.path, disk.mode, disk.overlay)
        names.append(name)
        return opened

    try:
        disks = [await attach(f"disk{i}", disk) for i, disk in enumerate(config.disks)]
        floppies = [await attach(f"floppy{i}", disk) for i, disk in enumerate(config.floppies)]
        cdrom = await attach("cdrom", Disk(config.cdrom, "ro")) if config.cdrom is not None else None
        partition = _partition(config, service, guest)
        machine = _build(config, partition, service, disks, floppies, cdrom)
    except BaseException:
        if partition is not None:
            await _abandon(partition, service)
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


async def _abandon(partition: Partition, service: ServiceOs) -> None:
    """Give back what belongs to a machine that could not be made."""
    for device in partition.devices.values():
        outside = service.withdraw(device)
        if outside is not None:
            await outside.stop()
    vmbus = partition.devices.get("vmbus")
    if vmbus is not None:
        from avmm.vmbus.bus import VmBus

        assert isinstance(vmbus, VmBus)
        await vmbus.close()
    partition.close()


def _partition(config: VmConfig, service: ServiceOs, guest: Guest | None) -> Partition:
    try:
        return Partition(
            config.name,
            config.memory_bytes,
            virtual_time=config.clock == "virtual",
            seed=config.seed,
            slice_ns=config.slice_us * MICROSECOND,
            service=service,
            make_processor=_processor(config, guest),
            on_triple_fault=config.on_triple_fault,
        )
    except OSError as error:  # a limit of the process, or of its container
        raise ConfigError(f"{config.memory} of memory is more than this host gives us now: {error.strerror}") from None


def _build(  # noqa: PLR0917 - once, from assemble
    config: VmConfig, partition: Partition, service: ServiceOs, disks: list[BlockDevice], floppies: list[BlockDevice],
    cdrom: BlockDevice | None,
) -> Machine:
    partition.processor.unmap_ram(*VGA_HOLE)
    for number in range(IOAPIC_INPUTS):
        partition.line(number)

    def slot() -> Slot:
        return Slot(partition)

    chips = _controllers(partition)
    pit = Pit(slot())

    def cd_drive() -> AtapiCdrom | None:
        return machine.cd_drive()  # which is made below, and may be exchanged

    drives = _bios_drives(config, disks, floppies, [Tray(cd_drive)] if cdrom is not None else [])
    rtc = _rtc(slot(), config, drives)
    physical = PhysicalDevices(partition)
    uart = _serial_port(physical) if "com1" in config.physical else Uart(slot())
    if "frame0" in config.physical:
        from avmm.control.physical.frame import PhysicalFrameDevice

        physical.add(PhysicalFrameDevice(partition))
    vga, keyboard, power = Vga(slot()), I8042(slot()), AcpiPower(slot(), pm_base(config))
    debug, port_e9 = DebugConsole(slot()), DebugConsole(slot(), 0xE9)
    port_e9.name = "debug-e9"
    speaker = Speaker(slot(), pit)
    cables = _drive_places(disks, cdrom)
    real_channels: list[PhysicalChannel] = []
    if {"ata0", "ata1"} & set(config.physical):
        from avmm.control.physical.ata import Ordinary, make_channels

        channels, real_channels = make_channels(partition, cables, set(config.physical))
        bus_master = BusMaster(Ordinary(partition), channels)
    else:
        channels = [AtaChannel(slot(), number, drives) for number, drives in enumerate(cables)]
        bus_master = BusMaster(slot(), channels)
    ide = ide_function(lambda function, base: _move(partition, base, physical))
    functions = [host_bridge(), isa_bridge(), ide, power_management(pm_base(config))]
    pci = PciHost(slot(), [*functions, hyperv_video()] if config.hyperv else functions)

    ours = [disk for disk in (*disks, *floppies) if isinstance(disk, HostDisk)]
    machine = Machine(partition, service, vga, keyboard, uart, power, speaker, debug, rtc, chips, physical, ours)
    parts: list[Device] = [chips.pic, chips.lapic, chips.ioapic, pit, rtc, keyboard, vga, power, debug, port_e9, PostCode(slot()), speaker]
    parts += [] if "com1" in config.physical else [uart]
    for device in physical.devices.values():
        device.plug()
    if real_channels:
        from avmm.control.physical.ata import plug_channels

        plug_channels(partition, channels, real_channels, bus_master)
    else:
        parts += [*channels, bus_master]
    for channel in real_channels:
        physical.add(channel)
    parts += [pci, *(image(slot()) for image in _own_devices(config))]
    for part in parts:
        _plug(partition, service, config, part)
    if config.hyperv:
        _enlighten(machine, chips.lapic, config, disks)
    vga.reset()  # maps its memory
    start_with(machine, config, drives)
    return machine


def _controllers(partition: Partition) -> Chips:
    """Make the interrupt controllers and wire them to each other, to the processor and to the lines."""
    pic = Pic(Slot(partition))
    lapic = LocalApic(Slot(partition), pic)
    ioapic = IoApic(Slot(partition))
    chips = Chips(pic, lapic, ioapic)
    ioapic.deliver = chips.message
    pic.output = lapic.pic_changed
    lapic.output = partition.vcpu.interrupt
    lapic.on_eoi = ioapic.eoi
    partition.vcpu.controller = lapic
    partition.msrs.handlers[APIC_BASE] = (lambda: lapic.base, lapic.write_base)
    for number, line in partition.lines.items():
        _connect(line, number, chips)
    return chips


def _rtc(board: Slot, config: VmConfig, drives: list[BiosDrive]) -> Rtc:
    """Make the clock, whose CMOS memory says which drives there are and in which order to boot from them."""
    epoch = config.epoch
    if epoch is None:
        epoch = VIRTUAL_EPOCH if config.clock == "virtual" else int(datetime.datetime.now(datetime.UTC).timestamp())
    rtc = Rtc(board, epoch, config.memory_bytes, floppies=[drive.floppy_type for drive in drives if drive.floppy])
    rtc.set_disks([(disk.geometry.cylinders, disk.geometry.heads, disk.geometry.sectors) for disk in drives if disk.fixed])
    rtc.set_boot_order([BOOT_GROUPS[letter] for letter in _boot_letters(config)])
    return rtc


def _enlighten(machine: Machine, lapic: LocalApic, config: VmConfig, disks: list[BlockDevice]) -> None:
    """Add what an enlightened guest finds: the synthetic processor interface and the bus to VM-H with its devices."""
    # Imported only for machines that have it: most do not, and it is a fifth of what a start has to load.
    from avmm.boot.acpi import VMBUS_MEMORY
    from avmm.devices.guest_port import GuestPort
    from avmm.hypervisor.hyperv.hyperv import HyperV
    from avmm.vmbus.bus import VmBus
    from avmm.vmbus.keyboard import SyntheticKeyboard
    from avmm.vmbus.video import SyntheticVideo

    partition = machine.partition
    hyperv = HyperV(partition, partition.processor, lapic)
    hyperv.install(partition.msrs)
    hyperv.on_idle = partition.vcpu.yield_soon

    def attention() -> None:
        partition.vcpu.yield_soon()
        partition.processor.kick()

    virtual = isinstance(partition.clock, VirtualClock)
    vmbus = VmBus(partition, hyperv, partition.fail, _no_hurry if virtual else attention)
    partition.observers.append(vmbus.machine_state)
    partition.holders.append(vmbus.hold)
    partition.plug(hyperv)
    partition.plug(vmbus)
    machine.vmbus = vmbus
    if config.hyperv_disks:
        _offer_disks(machine, disks, vmbus, ide=config.hyperv_ide)
    machine.synthetic_keyboard = SyntheticKeyboard()
    vmbus.offer(machine.synthetic_keyboard)
    machine.synthetic_video = SyntheticVideo(partition, VMBUS_MEMORY, config.resolution_pixels)
    partition.plug(machine.synthetic_video)
    vmbus.offer(machine.synthetic_video)
    machine.guest_port = GuestPort(partition)
    partition.plug(machine.guest_port)


def _offer_disks(machine: Machine, disks: list[BlockDevice], vmbus: VmBus, *, ide: bool) -> None:
    """Let the guest find the disks on one controller, or each on one of its own, beside its place on the emulated one."""
    from avmm.storage.controller import IdeAccelerator, ScsiController
    from avmm.storage.scsi_disk import ScsiDisk

    luns = [ScsiDisk(disk, _serial(i)) for i, disk in enumerate(disks)]
    machine.scsi = ScsiController(SCSI_INSTANCE, [] if ide else luns)
    machine.accelerators = [IdeAccelerator(lun, *divmod(i, 2)) for i, lun in enumerate(luns)] if ide else []
    for server in machine.disk_servers():
        vmbus.offer(server)


def _no_hurry() -> None:
    """In virtual time the event loop's turns are fixed."""


def _connect(line: InterruptLine, number: int, chips: Chips) -> None:
    """Wire a line to the controllers that are there when it changes: they may be exchanged."""
    apic_input = TIMER_INPUT if number == 0 else number

    def to_apic(level: bool) -> None:
        chips.ioapic.inputs[apic_input](level)

    def to_both(level: bool) -> None:
        chips.pic.inputs[number](level)
        chips.ioapic.inputs[apic_input](level)

    if number != TIMER_INPUT:
        line.connect(to_apic if number >= ISA_LINES else to_both)


def _serial_port(physical: PhysicalDevices) -> Uart:
    """Make COM1 a physical device, and return what is on its wire."""
    from avmm.control.physical.serial import PhysicalSerial  # imported only where it is used: most machines have none

    return physical.add(PhysicalSerial(physical.partition)).uart


def _own_devices(config: VmConfig) -> list[type[Device]]:
    """Return the classes of the user's own devices."""
    try:
        return [entry_point_class(device) if isinstance(device, str) else device for device in config.devices]
    except DeviceImageError as error:
        raise ConfigError(str(error)) from error


def _serial(index: int) -> str:
    """Return a disk's serial number, the same on every controller it is reached through."""
    return f"AVMM{index + 1:05}"


def _drive_places(disks: list[BlockDevice], cdrom: BlockDevice | None) -> list[list[Drive | None]]:
    """Place the drives: disks from the primary master on; the CD-ROM as secondary master, or in the first place that is free."""
    places: list[Drive | None] = [None] * 4
    for i, disk in enumerate(disks):
        places[i] = AtaDisk(disk, serial=_serial(i))
    if cdrom is not None:
        places[2 if places[2] is None else 3] = AtapiCdrom(cdrom)
    return [places[:2], places[2:]]


def _move(partition: Partition, base: int | None, physical: PhysicalDevices) -> None:
    """The guest's PCI driver moved an I/O BAR."""
    device = partition.devices["bmide"]
    assert isinstance(device, BusMaster)
    ports = device.ports
    device.move(base)
    partition.move_ports(device, ports)
    physical.refresh()


def _plug(partition: Partition, service: ServiceOs, config: VmConfig, device: Device) -> None:
    place = config.placement.get(device.name, "service" if device.name in OUTSIDE_BY_DEFAULT else "hypervisor")
    if place not in places(service):
        raise ConfigError(f"{device.name} cannot be placed in {place!r}: choose {' or '.join(places(service))}")
    try:
        partition.plug(device, inside=place == "hypervisor")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    add_outside(service, device, f"{config.name}/{device.name}", place)
    partition.placement[device.name] = place
    assert isinstance(device.board, Slot)
    device.board.inside = place == "hypervisor"


def _boot_letters(config: VmConfig) -> list[str]:
    """Return all the letters, those of the boot order wanted first."""
    order = config.boot or "acd"
    if not set(order) <= set(BOOT_GROUPS):
        raise ConfigError(f"cannot read {order!r} as a boot order: letters a (floppy), c (disk), d (CD-ROM)")
    return [*dict.fromkeys(order + "acd")]


def _bios_drives(config: VmConfig, disks: list[BlockDevice], floppies: list[BlockDevice], cds: list[Tray]) -> list[BiosDrive]:
    """The drives as the BIOS numbers them, in boot order."""
    groups = {
        "a": [BiosDrive(i, disk) for i, disk in enumerate(floppies)],
        "c": [BiosDrive(0x80 + i, disk) for i, disk in enumerate(disks)],
        "d": [BiosDrive(0xE0 + i, tray) for i, tray in enumerate(cds)],
    }
    return [drive for letter in _boot_letters(config) for drive in groups[letter]]
