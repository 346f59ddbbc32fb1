"""The two kinds of drives on an ATA channel: a fixed disk and an ATAPI CD-ROM drive, with the modes a host can set.

ATA/ATAPI-6 (T13/1410D) clause 6. A drive is data only: its task file, its modes (frozen, replaced as a whole, so that
they are saved as they are) and the medium behind it. The channel moves the data and decides when.

The invariant: everything a host can change is in the task file and in ``modes``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from avmm.devices.ata.registers import DEVICE, LBA_HIGH, LBA_LOW, LBA_MID, READY, Address, TaskFile
from avmm.devices.block import SECTOR, BlockDevice, BlockError, BlockFault, PromptDevice

CD_SECTOR = 2048
CD_RATIO = CD_SECTOR // SECTOR


@dataclass(frozen=True, slots=True)
class TransferModes:
    """Transfer modes set by SET FEATURES 03h; of the DMA modes at most one is not None."""

    pio: int = 4
    mdma: int | None = None
    udma: int | None = None


@dataclass(frozen=True, slots=True)
class DiskModes:
    """What a host can set in a disk."""

    heads: int = 16
    sectors: int = 63
    multiple: int = 16
    """Sectors per DRQ block of READ/WRITE MULTIPLE, 0 when not enabled."""
    write_cache: bool = True
    look_ahead: bool = True
    transfer: TransferModes = TransferModes()
    power: int = 0xFF
    """As CHECK POWER MODE reports it: FFh active, 80h idle, 00h standby."""
    asleep: bool = False
    defaults_on_reset: bool = False
    """SET FEATURES CCh: a software reset reverts to power-on defaults."""


@dataclass(frozen=True, slots=True)
class Sense:
    """Sense key, additional sense code and qualifier (SPC-3 clause 4.5)."""

    key: int = 0
    asc: int = 0
    ascq: int = 0


GOOD = Sense()
POWER_ON = Sense(6, 0x29)
MEDIUM_CHANGED = Sense(6, 0x28)


@dataclass(frozen=True, slots=True)
class CdromModes:
    """What a host can set in a CD-ROM drive, and what the drive has to tell it."""

    sense: Sense = GOOD
    attention: Sense = POWER_ON
    """The unit attention that the next command ends with."""
    locked: bool = False
    loaded: bool = True
    event: int = 0
    """Media event to report: 0 none, 1 eject request, 2 new media, 3 media removal (MMC-5 table 284)."""
    transfer: TransferModes = TransferModes()
    asleep: bool = False


@dataclass(frozen=True, slots=True)
class DriveState:
    """A drive's part of a saved channel."""

    registers: bytes
    previous: bytes
    error: int
    status: int
    intrq: bool
    modes: DiskModes | CdromModes


class Drive:
    """A drive on the cable: what both kinds share."""

    signature = (0x00, 0x00)
    """LBA mid and high after a reset."""
    ready = READY
    """Status after a reset."""

    def __init__(self, disk: BlockDevice, serial: str, model: str, modes: DiskModes | CdromModes) -> None:
        self.put_in(disk)
        self.serial = serial
        self.model = model
        self.task = TaskFile()
        self.modes: DiskModes | CdromModes = modes
        self.defaults: DiskModes | CdromModes = modes

    def put_in(self, disk: BlockDevice) -> None:
        """Have another medium."""
        self.disk = disk
        self.prompt = disk if isinstance(disk, PromptDevice) else None
        """The medium, if it can move sectors straight from and to memory."""

    def set_signature(self) -> None:
        """Be as after a reset or diagnostic, as far as the task file tells."""
        self.task.set_signature(*self.signature)
        self.task.error = 1
        self.task.status = self.ready
        self.task.intrq = False

    def wake(self, hard: bool) -> None:
        """Take a reset's effect on the modes; ``hard`` for power-on and RESET#."""
        self.modes = self.defaults if hard else replace(self.modes, asleep=False)

    def save(self) -> DriveState:
        """Return the drive's state."""
        task = self.task
        return DriveState(bytes(task.registers), bytes(task.previous), task.error, task.status, task.intrq, self.modes)

    def restore(self, state: DriveState) -> None:
        """Continue from ``state``; ValueError when it is of the other kind of drive."""
        if type(state.modes) is not type(self.modes):
            raise ValueError(f"the saved drive is not a {type(self).__name__}")
        task = self.task
        task.registers[:] = state.registers
        task.previous[:] = state.previous
        task.error, task.status, task.intrq = state.error, state.status, state.intrq
        self.modes = state.modes


@dataclass(frozen=True, slots=True)
class Geometry:
    """Cylinders, heads and sectors per track that IDENTIFY DEVICE reports as default."""

    cylinders: int
    heads: int = 16
    sectors: int = 63


class AtaDisk(Drive):
    """A fixed disk with 512-byte sectors, CHS, 28-bit and 48-bit addressing."""

    modes: DiskModes

    def __init__(
        self,
        disk: BlockDevice,
        serial: str = "AVMM00001",
        model: str = "AVMM HARDDISK",
        geometry: Geometry | None = None,
        multiple_max: int = 16,
    ) -> None:
        self.geometry = geometry or Geometry(max(1, min(16383, disk.sectors // (16 * 63))))
        self.multiple_max = multiple_max
        self.told: tuple[DiskModes, int, bytes] | None = None
        """What IDENTIFY DEVICE was answered last, behind the modes and the capacity that it was the answer for."""
        super().__init__(disk, serial, model, DiskModes(self.geometry.heads, self.geometry.sectors, multiple_max))

    def wake(self, hard: bool) -> None:
        super().wake(hard or self.modes.defaults_on_reset)
        if not hard:
            self.modes = replace(self.modes, power=0xFF)

    @property
    def cylinders(self) -> int:
        """Cylinders in the current translation (IDENTIFY DEVICE word 54)."""
        if (self.modes.heads, self.modes.sectors) == (self.geometry.heads, self.geometry.sectors):
            return self.geometry.cylinders
        return min(65535, self.disk.sectors // (self.modes.heads * self.modes.sectors))

    def address(self) -> tuple[Address, int | None]:
        """Return how a 28-bit command addresses, and the sector; None for a CHS address outside the translation."""
        task = self.task
        device = task.registers[DEVICE]
        if device & 0x40:
            return Address.LBA28, task.lba28
        sector = task.registers[LBA_LOW]
        head = device & 0x0F
        if not 1 <= sector <= self.modes.sectors or head >= self.modes.heads:
            return Address.CHS, None
        cylinder = task.registers[LBA_HIGH] << 8 | task.registers[LBA_MID]
        return Address.CHS, (cylinder * self.modes.heads + head) * self.modes.sectors + sector - 1

    def report(self, address: Address, lba: int) -> None:
        """Put ``lba`` into the registers in the terms the command used."""
        if address is Address.LBA48:
            self.task.set_lba48(lba)
        elif address is Address.LBA28:
            self.task.set_lba28(lba)
        elif address is Address.CHS:
            track, sector = divmod(lba, self.modes.sectors)
            cylinder, head = divmod(track, self.modes.heads)
            registers = self.task.registers
            registers[LBA_LOW], registers[LBA_MID], registers[LBA_HIGH] = sector + 1 & 0xFF, cylinder & 0xFF, cylinder >> 8 & 0xFF
            registers[DEVICE] = registers[DEVICE] & 0xF0 | head


class AtapiCdrom(Drive):
    """A CD-ROM drive of the PACKET command set; its 2048-byte sectors are four sectors of the block device."""

    signature = (0x14, 0xEB)
    ready = 0x00
    modes: CdromModes

    def __init__(self, disk: BlockDevice, serial: str = "AVMM00002", model: str = "AVMM CD-ROM") -> None:
        super().__init__(disk, serial, model, CdromModes())

    @property
    def sectors(self) -> int:
        """Capacity in 2048-byte sectors, 0 with no medium or an open tray."""
        return self.disk.sectors // CD_RATIO if self.modes.loaded else 0

    def wake(self, hard: bool) -> None:
        loaded = self.modes.loaded
        super().wake(hard)
        self.modes = replace(self.modes, sense=GOOD, attention=POWER_ON, locked=False, loaded=loaded)

    def insert(self, disk: BlockDevice) -> None:
        """Put another medium in and close the tray: what a person does, not the guest."""
        self.put_in(disk)
        self.modes = replace(self.modes, loaded=True, attention=MEDIUM_CHANGED, event=2)

    def eject(self) -> None:
        """Open the tray as by the button: refused, but reported to the guest, while the guest has locked it."""
        if self.modes.locked:
            self.modes = replace(self.modes, event=1)
        else:
            self.modes = replace(self.modes, loaded=False, event=3)


class Tray:
    """A block device: what lies now in the CD-ROM drive that ``find`` returns. For the BIOS, which has no drive of its own."""

    read_only = True

    def __init__(self, find: Callable[[], AtapiCdrom | None]) -> None:
        self._find = find

    def _medium(self) -> BlockDevice | None:
        drive = self._find()
        return drive.disk if drive is not None and drive.modes.loaded else None

    @property
    def sectors(self) -> int:
        """Capacity in 512-byte sectors; 0 with no medium or an open tray."""
        medium = self._medium()
        return medium.sectors if medium is not None else 0

    async def read(self, lba: int, count: int) -> bytes | bytearray:
        """Read what is in."""
        medium = self._medium()
        if medium is None:
            raise BlockError(BlockFault.NO_MEDIUM, lba)
        return await medium.read(lba, count)

    async def write(self, lba: int, data: bytes | bytearray | memoryview) -> None:
        """Nothing is written to CD-ROMs."""
        raise BlockError(BlockFault.READ_ONLY, lba)

    async def flush(self) -> None:
        """There is nothing to."""
