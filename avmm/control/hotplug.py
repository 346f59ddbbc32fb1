"""Disks that come and go while a machine runs: LUNs of the SCSI controller that an enlightened guest finds on VMBus."""

from __future__ import annotations

from avmm.control.config import ConfigError, Disk
from avmm.control.machine import Machine
from avmm.devices.block import BlockDevice
from avmm.interpose.interposers.share import SharedDisk


class HotPlug:
    """What was plugged into one machine. LUNs that were there from the start can be pulled too; they stay on the IDE controller."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._names: dict[int, str] = {}
        self._serials = 0

    async def attach(self, disk: Disk) -> int:
        """Open an image and plug it in. ConfigError when the machine has no such controller, ImageError when it cannot be opened."""
        scsi = self._machine.scsi
        if scsi is None:
            raise ConfigError("disks can be plugged in while the machine runs only with hyperv = true and hyperv_disks")
        self._serials += 1
        if isinstance(disk.path, SharedDisk):
            return self._plug(disk.path)
        name = f"{self._machine.partition.name}/lun-{self._serials}"
        opened = await self._machine.service.open_disk(name, disk.path, disk.mode, disk.overlay)
        self._machine.names.append(name)
        try:
            lun = self._plug(opened)
        except ConfigError:
            await self._close(name)
            raise
        self._names[lun] = name
        return lun

    def _plug(self, disk: BlockDevice) -> int:
        from avmm.storage.scsi_disk import ScsiDisk

        assert self._machine.scsi is not None
        try:
            return self._machine.scsi.add_lun(ScsiDisk(disk, f"AVMMLUN{self._serials:05}"))
        except ValueError as error:
            raise ConfigError(str(error)) from error

    async def detach(self, lun: int) -> None:
        """Pull a LUN; what is in flight is finished, then the image is closed. ConfigError when there is none."""
        scsi = self._machine.scsi
        if scsi is None or (0, 0, lun) not in scsi.luns:
            raise ConfigError(f"{self._machine.partition.name} has no disk at LUN {lun}")
        scsi.remove_lun(lun)
        name = self._names.pop(lun, None)
        if name is not None:
            await self._close(name)

    async def _close(self, name: str) -> None:
        self._machine.names.remove(name)
        await self._machine.service.close_disk(name)
