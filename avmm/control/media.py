"""Media that come and go while a machine runs: CD-ROMs, and disks of the SCSI controller that an enlightened guest finds on VMBus.

To put one in is an input of the machine (avmm.control.inputs): its image is opened first, under a name that no other has in the
machine's life, and the input names it. So a record says which image came when, and replaying opens them all before it begins.
The invariant: an image stays open until nothing of the machine uses it any more, and not longer than the machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from avmm.control.config import ConfigError, Disk
from avmm.control.inputs import Input, Inputs
from avmm.control.machine import Machine
from avmm.devices.ata.drive import AtapiCdrom
from avmm.devices.block import BlockDevice
from avmm.interpose.interposers.share import SharedDisk
from avmm.storage.controller import LUNS
from avmm.storage.scsi_disk import ScsiDisk

if TYPE_CHECKING:
    from avmm.control.config import Mode

CDROM = "cdrom"
INSERT, PLUG = "insert", "plug"
_LOCKED = f"Device '{CDROM}' is locked and force was not specified, wait for tray to open and try again"


class Media:
    """What is put into one machine. LUNs that were there from the start can be pulled too; they stay on the IDE controller."""

    def __init__(self, machine: Machine, inputs: Inputs) -> None:
        self._machine = machine
        self._inputs = inputs
        self._opened = 0
        self._plugged: dict[int, str | None] = {}
        """Each LUN that was plugged in, or will be, with the name of its image; None for another machine's disk, or not yet."""
        self._unused: list[str] = []
        """Images that nothing uses any more, or that are on their way in."""
        inputs.handlers.update(eject=self._eject, insert=self._insert, plug=self._plug, unplug=self._unplug)

    # -- images

    def _full(self, name: str) -> str:
        return f"{self._machine.partition.name}/{name}"

    async def _open(self, kind: str, path: str | Path, mode: Mode, overlay: str | Path | None = None) -> tuple[str, str, str, str]:
        """Open an image, and return the last values of the input that puts it in: name, path, mode and fingerprint."""
        self._opened += 1
        name = f"{kind}{self._opened}"
        disk = await self._machine.service.open_disk(self._full(name), path, mode, overlay)
        self._unused.append(name)
        return name, str(disk.file.path), mode, await disk.file.fingerprint()

    def _disk(self, name: str) -> BlockDevice:
        return self._machine.service.disks[self._full(name)]

    def _use(self, name: str) -> None:
        self._unused.remove(name)
        self._machine.names.append(self._full(name))

    def _use_no_more(self, name: str) -> None:
        self._machine.names.remove(self._full(name))
        self._unused.append(name)

    async def close(self) -> None:
        """Close what is not used any more."""
        while self._unused:
            await self._machine.service.close_disk(self._full(self._unused.pop()))

    async def _settled(self) -> None:
        """Close what the last input has freed, if it was done at once; otherwise that is left for the next one, or the end."""
        if not (self._inputs.waiting or self._inputs.left):
            await self.close()

    async def open_all(self, inputs: Iterable[Input]) -> None:
        """Open the images that a record puts in. ConfigError when one is another now, ImageError when it is not there."""
        for entry in inputs:
            if entry.kind in (INSERT, PLUG):
                name, path, mode, fingerprint = entry.values[-4:]
                disk = await self._machine.service.open_disk(self._full(name), path, mode)
                self._unused.append(name)
                if await disk.file.fingerprint() != fingerprint:
                    raise ConfigError(f"{path} is not what was put in at {entry.now / 1e9:.3f} s any more")

    # -- the CD-ROM drive

    def drive(self) -> AtapiCdrom:
        """Return the CD-ROM drive. ConfigError when the machine has none."""
        drive = self._machine.cd_drive()
        if drive is None:
            raise ConfigError("this machine has no CD-ROM drive")
        return drive

    def _check_lock(self, force: bool) -> AtapiCdrom:
        drive = self.drive()
        if drive.modes.locked and not force:
            raise ConfigError(_LOCKED)
        return drive

    def eject(self, force: bool) -> None:
        """Open the tray, as the button does; ``force`` as a paper clip does. ConfigError while the guest has locked it."""
        drive = self.drive()
        self._inputs.post("eject", force)
        if drive.modes.locked and not force:
            raise ConfigError(_LOCKED)  # and the guest was told that somebody wants to

    def _eject(self, force: bool) -> None:
        drive = self.drive()
        if force:
            drive.modes = replace(drive.modes, locked=False)
        drive.eject()

    async def insert(self, path: str | Path, force: bool) -> None:
        """Put another CD-ROM in. ConfigError while the guest has locked the tray, ImageError when it cannot be opened."""
        self._check_lock(force)
        self._inputs.post(INSERT, *await self._open(f"{CDROM}+", path, "ro"))
        await self._settled()

    def _insert(self, name: str, *_: object) -> None:
        drive = self.drive()
        before = next(other for other in self._machine.names if self._machine.service.disks[other] is drive.disk)
        drive.insert(self._disk(name))
        self._use(name)
        self._use_no_more(before.partition("/")[2])

    # -- the SCSI controller

    async def attach(self, disk: Disk) -> int:
        """Open an image and plug it in. ConfigError when the machine has no such controller, ImageError when it cannot be opened."""
        scsi = self._machine.scsi
        if scsi is None:
            raise ConfigError("disks can be plugged in while the machine runs only with hyperv = true and hyperv_disks")
        lun = next((n for n in range(LUNS) if (0, 0, n) not in scsi.luns and n not in self._plugged), None)
        if lun is None:
            raise ConfigError(f"{scsi.name} has {LUNS} disks already")
        if self._inputs.recorder is not None and (isinstance(disk.path, SharedDisk) or disk.mode == "rw" or disk.overlay is not None):
            raise ConfigError(f"{self._machine.partition.name} is recorded: give the disk an overlay without a file, or have it read-only")
        self._plugged[lun] = None  # nobody else takes it meanwhile
        try:
            if isinstance(disk.path, SharedDisk):
                self._opened += 1
                scsi.add_lun(ScsiDisk(disk.path, _serial(self._opened)), lun)
                return lun
            image = await self._open("lun-", disk.path, disk.mode, disk.overlay)
            self._inputs.post(PLUG, lun, _serial(self._opened), *image)
        except BaseException:
            del self._plugged[lun]
            raise
        return lun

    def _plug(self, lun: int, serial: str, name: str, *_: object) -> None:
        assert self._machine.scsi is not None
        self._machine.scsi.add_lun(ScsiDisk(self._disk(name), serial), lun)
        self._plugged[lun] = name
        self._use(name)

    async def detach(self, lun: int) -> None:
        """Pull a LUN; what is in flight is finished, then the image is closed. ConfigError when there is none."""
        scsi = self._machine.scsi
        if scsi is None or (0, 0, lun) not in scsi.luns:
            raise ConfigError(f"{self._machine.partition.name} has no disk at LUN {lun}")
        self._inputs.post("unplug", lun)
        await self._settled()

    def _unplug(self, lun: int) -> None:
        assert self._machine.scsi is not None
        if (0, 0, lun) in self._machine.scsi.luns:
            self._machine.scsi.remove_lun(lun)
            name = self._plugged.pop(lun, None)
            if name is not None:
                self._use_no_more(name)


def _serial(number: int) -> str:
    return f"AVMMLUN{number:05}"
