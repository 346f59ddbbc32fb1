"""The parts of a PC that can be exchanged while it runs: how another instance of each is made, and who must hear of it.

Each device of a machine has one :class:`Part`. ``make`` makes an instance like the one there, from any class with the same
constructor; ``wire`` gives the new one what is connected to the old one, and gives whoever holds the old one the new one.

The invariant: after ``wire`` nothing in the machine refers to the old instance; wiring back undoes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from avmm.devices.ata.busmaster import BusMaster
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.drive import AtaDisk, AtapiCdrom, Drive
from avmm.devices.debug import DebugConsole, PostCode
from avmm.devices.device import Board, Device
from avmm.devices.i8042 import I8042
from avmm.devices.ioapic import IoApic
from avmm.devices.lapic import LocalApic
from avmm.devices.pci import PciHost
from avmm.devices.pic import Pic
from avmm.devices.pit import Pit
from avmm.devices.power import AcpiPower
from avmm.devices.rtc import Rtc
from avmm.devices.speaker import Speaker
from avmm.devices.uart import Uart
from avmm.devices.vga.vga import Vga
from avmm.hypervisor.features import APIC_BASE

if TYPE_CHECKING:
    from avmm.control.machine import Machine


@dataclass(slots=True)
class Chips:
    """The interrupt controllers of a machine, as the lines find them."""

    pic: Pic
    lapic: LocalApic
    ioapic: IoApic

    def message(self, vector: int, level: bool, mode: int) -> None:
        """Take a message of the I/O APIC to the local APIC."""
        self.lapic.inject(vector, level)


Make = Callable[[Any, Board, Any], Device]
Wire = Callable[["Machine", Any, Any], None]


def _make_plain(image: Any, board: Board, old: Any) -> Device:
    made: Device = image(board)
    return made


def _wire_nothing(machine: Machine, old: Any, new: Any) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of exchangeable device."""

    image: type[Device]
    """The built-in image."""
    make: Make = _make_plain
    """``(image, board, old) -> device``"""
    wire: Wire = _wire_nothing
    """``(machine, old, new)``, after the hooks were copied"""
    hooks: tuple[str, ...] = field(default=())
    """Attributes of the old instance that others have set."""

    def connect(self, machine: Machine, old: Device, new: Device) -> None:
        """Put ``new`` where ``old`` is connected."""
        for hook in self.hooks:
            setattr(new, hook, getattr(old, hook))
        self.wire(machine, old, new)
        for observer in machine.on_exchange:
            observer(old, new)


def _wire_pic(machine: Machine, old: Pic, new: Pic) -> None:
    machine.chips.pic = machine.chips.lapic.pic = new


def _make_lapic(image: Any, board: Board, old: LocalApic) -> Device:
    made: Device = image(board, old.pic)
    return made


def _wire_lapic(machine: Machine, old: LocalApic, new: LocalApic) -> None:
    machine.chips.lapic = new
    machine.chips.pic.output = new.pic_changed
    partition = machine.partition
    partition.vcpu.controller = new
    partition.msrs.handlers[APIC_BASE] = (lambda: new.base, new.write_base)
    partition.vcpu.interrupt(new.intr)
    if machine.vmbus is not None:
        machine.vmbus.hyperv.use_apic(new)


def _make_ioapic(image: Any, board: Board, old: IoApic) -> Device:
    made: Device = image(board, old.deliver)
    return made


def _wire_ioapic(machine: Machine, old: IoApic, new: IoApic) -> None:
    machine.chips.ioapic = new
    machine.chips.lapic.on_eoi = new.eoi


def _wire_pit(machine: Machine, old: Pit, new: Pit) -> None:
    machine.speaker.listen_to(new)


def _make_speaker(image: Any, board: Board, old: Speaker) -> Device:
    made: Device = image(board, old.pit)
    return made


def _wire_speaker(machine: Machine, old: Speaker, new: Speaker) -> None:
    machine.speaker = new
    new.listen_to(old.pit)


def _make_rtc(image: Any, board: Board, old: Rtc) -> Device:
    made: Device = image(board, 0, 1 << 20)  # all of it is in the state
    return made


def _wire_rtc(machine: Machine, old: Rtc, new: Rtc) -> None:
    machine.rtc = new


def _wire_keyboard(machine: Machine, old: I8042, new: I8042) -> None:
    machine.keyboard = new


def _wire_video(machine: Machine, old: Vga, new: Vga) -> None:
    machine.vga = new
    new.continue_generations(old)
    video = machine.video_services
    if video is not None:
        video.use(new)


def _make_uart(image: Any, board: Board, old: Uart) -> Device:
    made: Device = image(board, old.base, old.line.number, old.name, paced=old.paced, overrun=old.overrun)
    return made


def _wire_uart(machine: Machine, old: Uart, new: Uart) -> None:
    if machine.uart is old:
        machine.uart = new


def _make_power(image: Any, board: Board, old: AcpiPower) -> Device:
    made: Device = image(board, old.ports[0].first)
    return made


def _wire_power(machine: Machine, old: AcpiPower, new: AcpiPower) -> None:
    machine.power = new


def _make_debug(image: Any, board: Board, old: DebugConsole) -> Device:
    made: Device = image(board, old.ports[0].first)
    made.name = old.name
    return made


def _wire_debug(machine: Machine, old: DebugConsole, new: DebugConsole) -> None:
    if machine.debug is old:
        machine.debug = new


def _make_ata(image: Any, board: Board, old: AtaChannel) -> Device:
    """Make drives of its own as well: making a channel resets them. The media behind them are the same."""

    def again(drive: Drive | None) -> Drive | None:
        if isinstance(drive, AtaDisk):
            return type(drive)(drive.disk, drive.serial, drive.model, drive.geometry, drive.multiple_max)
        return type(drive)(drive.disk, drive.serial, drive.model) if isinstance(drive, AtapiCdrom) else None

    made: Device = image(board, 0 if old.name == "ata0" else 1, [again(drive) for drive in old.drives])
    return made


def _wire_ata(machine: Machine, old: AtaChannel, new: AtaChannel) -> None:
    bus_master = machine.partition.devices["bmide"]
    assert isinstance(bus_master, BusMaster)
    bus_master.serve(machine.channels())


def _make_bus_master(image: Any, board: Board, old: BusMaster) -> Device:
    """Make it for no channels yet, or it would serve them before it has the state."""
    made: BusMaster = image(board, old.channels, serve=False)
    made.move(old.base)
    return made


def _wire_bus_master(machine: Machine, old: BusMaster, new: BusMaster) -> None:
    new.serve(machine.channels())


def _make_pci(image: Any, board: Board, old: PciHost) -> Device:
    made: Device = image(board, list(old.functions.values()))
    return made


PARTS: dict[str, Part] = {
    "pic": Part(Pic, wire=_wire_pic, hooks=("output",)),
    "lapic": Part(LocalApic, _make_lapic, _wire_lapic, ("output", "on_eoi", "on_nmi")),
    "ioapic": Part(IoApic, _make_ioapic, _wire_ioapic),
    "pit": Part(Pit, wire=_wire_pit),
    "rtc": Part(Rtc, _make_rtc, _wire_rtc),
    "keyboard": Part(I8042, wire=_wire_keyboard, hooks=("on_a20", "on_room")),
    "video": Part(Vga, wire=_wire_video),
    "com1": Part(Uart, _make_uart, _wire_uart, ("on_output",)),
    "acpi-power": Part(AcpiPower, _make_power, _wire_power),
    "debug": Part(DebugConsole, _make_debug, _wire_debug, ("on_output",)),
    "debug-e9": Part(DebugConsole, _make_debug, _wire_debug, ("on_output",)),
    "post": Part(PostCode),
    "speaker": Part(Speaker, _make_speaker, _wire_speaker),
    "ata0": Part(AtaChannel, _make_ata, _wire_ata),
    "ata1": Part(AtaChannel, _make_ata, _wire_ata),
    "bmide": Part(BusMaster, _make_bus_master, _wire_bus_master),
    "pci": Part(PciHost, _make_pci),
}
"""By device name."""
