"""One PC as its parts: what the control panel holds of a machine that was put together.

The invariant: a machine that was closed has given back its disks, its tasks and its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from avmm.boot.bios.video import VideoServices
from avmm.control.parts import PARTS, Chips, Part
from avmm.control.physical import PhysicalDevices
from avmm.devices.ata.channel import AtaChannel
from avmm.devices.ata.drive import AtapiCdrom
from avmm.devices.debug import DebugConsole
from avmm.devices.device import Device
from avmm.devices.i8042 import I8042
from avmm.devices.power import AcpiPower
from avmm.devices.rtc import Rtc
from avmm.devices.speaker import Speaker
from avmm.devices.uart import Uart
from avmm.devices.vga.vga import Vga
from avmm.host.service import ServiceOs
from avmm.host.virtualization_driver import Disk as HostDisk
from avmm.hypervisor.partition import Partition

if TYPE_CHECKING:
    from avmm.devices.guest_port import GuestPort
    from avmm.storage.controller import IdeAccelerator, ScsiController
    from avmm.vmbus.bus import VmBus
    from avmm.vmbus.channel import Channel
    from avmm.vmbus.keyboard import SyntheticKeyboard
    from avmm.vmbus.video import SyntheticVideo


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
    chips: Chips
    physical: PhysicalDevices
    """The devices that stand for real hardware."""
    disks: list[HostDisk] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """What the disks are called in VM-H."""
    boot_failure: str = ""
    """Why the built-in BIOS found nothing to boot."""
    vmbus: VmBus | None = None
    """Where VM-H offers channels to an enlightened guest; None without ``hyperv`` in the configuration."""
    scsi: ScsiController | None = None
    """The enlightened way to the disks; LUNs may come and go."""
    accelerators: list[IdeAccelerator] = field(default_factory=list)
    """With ``hyperv_ide`` the way to each drive of the emulated controller."""
    synthetic_keyboard: SyntheticKeyboard | None = None
    """Where keys go while an enlightened guest listens there."""
    synthetic_video: SyntheticVideo | None = None
    """What the monitor shows while an enlightened guest draws there."""
    guest_port: GuestPort | None = None
    """Where the host tells the built-in guest which of its storage stacks to use."""
    video_services: VideoServices | None = None
    """The built-in BIOS's int 10h."""
    on_exchange: list[Callable[[Device, Device], None]] = field(default_factory=list)
    """Called with the old and the new instance when a device model was exchanged."""

    def part(self, name: str) -> Part:
        """Return how a device can be exchanged. KeyError when the machine has none of that name."""
        device = self.partition.devices[name]
        return PARTS.get(name) or Part(type(device))

    def channels(self) -> list[AtaChannel]:
        """Return the ATA channels."""
        devices, physical = self.partition.devices, self.physical.devices
        shown = [physical[name].front.target.channel if name in physical else devices[name] for name in ("ata0", "ata1")]
        return [device for device in shown if isinstance(device, AtaChannel)]

    def cd_drive(self) -> AtapiCdrom | None:
        """Return the CD-ROM drive, if there is one."""
        return next((drive for channel in self.channels() for drive in channel.drives if isinstance(drive, AtapiCdrom)), None)

    def disk_servers(self) -> list[ScsiController]:
        """Return the controllers that are offered on VMBus."""
        return [*([self.scsi] if self.scsi is not None else []), *self.accelerators]

    def disk_channels(self) -> list[Channel]:
        """Return their channels that the guest has open."""
        found = [self.vmbus.channel(server) for server in self.disk_servers()] if self.vmbus is not None else []
        return [channel for channel in found if channel is not None]

    async def close(self) -> None:
        """Give back disks, tasks and memory. The machine must have ended."""
        for physical in self.physical.devices.values():
            physical.close()
        for device in self.partition.devices.values():
            outside = self.service.withdraw(device)
            if outside is not None:
                await outside.stop()  # nobody waits any more for what it may be waiting for
        if self.vmbus is not None:
            await self.vmbus.close()
        for name in self.names:
            await self.service.close_disk(name)
        self.partition.close()
