"""The commands of an ATA disk: what each checks, changes and starts.

ATA/ATAPI-6 (T13/1410D) clause 8, with the CHS commands of ATA-1 to ATA-5 that older software uses. A handler gets the
sequencer and the drive, whose task file holds the parameters; status is DRDY when it is called.

The invariant: every handler ends in exactly one call of the sequencer's ``complete``, ``fail``, ``send``, ``begin`` or ``request``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from avmm.devices.ata.drive import AtaDisk, DiskModes, Drive, TransferModes
from avmm.devices.ata.identify import identify_disk
from avmm.devices.ata.registers import (
    ABRT,
    COUNT,
    DATA_IN,
    DATA_OUT,
    DEVICE,
    DMA_IN,
    DMA_OUT,
    FEATURES,
    IDLE,
    IDNF,
    LBA,
    WP,
    Address,
    Command,
    Phase,
)
from avmm.devices.ata.transfer import Work
from avmm.devices.block import SECTOR

if TYPE_CHECKING:
    from avmm.devices.ata.sequencer import Sequencer

Handler = Callable[["Sequencer", AtaDisk], None]

POWER_STANDBY, POWER_IDLE, POWER_ACTIVE = 0x00, 0x80, 0xFF


def execute(sequencer: Sequencer, drive: AtaDisk, code: int) -> None:
    """Start command ``code``; one that is not known (SMART, PACKET, SECURITY ...) is aborted."""
    HANDLERS.get(code, _abort)(sequencer, drive)


def transfer_modes(old: TransferModes, value: int) -> TransferModes | None:
    """Return the modes after SET FEATURES 03h with ``value`` in the count register, None when there is no such mode."""
    kind, mode = value >> 3, value & 7
    if kind == 0 and mode <= 1:
        return replace(old, pio=0)
    if kind == 1 and mode <= 4:
        return replace(old, pio=mode)
    if kind == 4 and mode <= 2:
        return replace(old, mdma=mode, udma=None)
    if kind == 8 and mode <= 5:
        return replace(old, mdma=None, udma=mode)
    return None


def _abort(sequencer: Sequencer, drive: Drive) -> None:
    sequencer.complete(drive, ABRT)


def _identify(sequencer: Sequencer, drive: AtaDisk) -> None:
    sequencer.send(drive, identify_disk(drive, sequencer.active))


def _extent(drive: AtaDisk, ext: bool) -> tuple[Address, int | None, int]:
    """Return how a command addresses, its first sector (None when there can be none of that address), and how many they are."""
    task = drive.task
    if ext:
        return Address.LBA48, task.lba48, task.count48
    address, lba = drive.address()
    return address, lba, task.count28


def by_dma(drive: AtaDisk, code: int) -> tuple[Phase, int] | None:
    """Return which way command ``code`` would move how many sectors, if it is one of DMA and they are there to be moved."""
    flow, ext, _ = MOVES.get(code, (IDLE, False, False))
    if flow is not DMA_IN and flow is not DMA_OUT:
        return None
    _, lba, count = _extent(drive, ext)
    if lba is None or lba + count > drive.disk.sectors or (flow is DMA_OUT and drive.disk.read_only):
        return None
    return flow, count


def _move(sequencer: Sequencer, drive: AtaDisk, *, flow: Phase, ext: bool, multiple: bool = False) -> None:
    """READ, WRITE and VERIFY in all their forms."""
    modes = drive.modes
    if multiple and not modes.multiple:
        _abort(sequencer, drive)
        return
    address, lba, count = _extent(drive, ext)
    if lba is None:
        sequencer.complete(drive, IDNF)
        return
    capacity = drive.disk.sectors
    if lba + count > capacity:
        bad = max(lba, capacity)
        sequencer.fail(drive, IDNF, address, bad, lba + count - bad)
        return
    if drive.disk.read_only and (flow is DATA_OUT or flow is DMA_OUT):
        sequencer.fail(drive, WP | ABRT, address, lba, count)
        return
    if modes.power != POWER_ACTIVE:
        drive.modes = replace(modes, power=POWER_ACTIVE)
    sequencer.begin(drive, flow, address, lba=lba, count=count, block=SECTOR * (modes.multiple if multiple else 1))


def _set_multiple(sequencer: Sequencer, drive: AtaDisk) -> None:
    count = drive.task.registers[COUNT]
    if count > drive.multiple_max or count & (count - 1):
        _abort(sequencer, drive)
        return
    drive.modes = replace(drive.modes, multiple=count)
    sequencer.complete(drive)


def _initialize_parameters(sequencer: Sequencer, drive: AtaDisk) -> None:
    sectors = drive.task.registers[COUNT]
    if not 1 <= sectors <= 63:
        _abort(sequencer, drive)
        return
    drive.modes = replace(drive.modes, heads=(drive.task.registers[DEVICE] & 0x0F) + 1, sectors=sectors)
    sequencer.complete(drive)


def _seek(sequencer: Sequencer, drive: AtaDisk) -> None:
    _, lba = drive.address()
    sequencer.complete(drive, IDNF if lba is None or lba >= drive.disk.sectors else 0)


def _recalibrate(sequencer: Sequencer, drive: AtaDisk) -> None:
    sequencer.complete(drive)


def _flush(sequencer: Sequencer, drive: AtaDisk) -> None:
    sequencer.request(drive, Work.FLUSH)


def _native_max(sequencer: Sequencer, drive: AtaDisk) -> None:
    last = drive.disk.sectors - 1
    if last < 0 or not drive.task.registers[DEVICE] & LBA:
        _abort(sequencer, drive)
        return
    drive.task.set_lba28(min(last, 0x0FFFFFFF))
    sequencer.complete(drive)


def _native_max_ext(sequencer: Sequencer, drive: AtaDisk) -> None:
    drive.task.set_lba48(max(drive.disk.sectors - 1, 0))
    sequencer.complete(drive)


def _power(sequencer: Sequencer, drive: AtaDisk, *, mode: int) -> None:
    drive.modes = replace(drive.modes, power=mode)
    sequencer.complete(drive)


def _check_power(sequencer: Sequencer, drive: AtaDisk) -> None:
    drive.task.registers[COUNT] = drive.modes.power
    sequencer.complete(drive)


def _sleep(sequencer: Sequencer, drive: AtaDisk) -> None:
    drive.modes = replace(drive.modes, power=POWER_STANDBY, asleep=True)
    sequencer.complete(drive)


def _set_features(sequencer: Sequencer, drive: AtaDisk) -> None:
    feature = drive.task.registers[FEATURES]
    modes = drive.modes
    new: DiskModes | None = None
    if feature == 0x03:
        transfer = transfer_modes(modes.transfer, drive.task.registers[COUNT])
        new = replace(modes, transfer=transfer) if transfer is not None else None
    elif feature in (0x02, 0x82):
        new = replace(modes, write_cache=feature == 0x02)
    elif feature in (0xAA, 0x55):
        new = replace(modes, look_ahead=feature == 0xAA)
    elif feature in (0xCC, 0x66):
        new = replace(modes, defaults_on_reset=feature == 0xCC)
    if new is None:
        _abort(sequencer, drive)
        return
    drive.modes = new
    if feature == 0x82:
        _flush(sequencer, drive)  # what was cached must not be lost
    else:
        sequencer.complete(drive)


MOVES: Final[dict[int, tuple[Phase, bool, bool]]] = {
    Command.READ_SECTORS: (DATA_IN, False, False),
    Command.READ_SECTORS_NO_RETRY: (DATA_IN, False, False),
    Command.READ_SECTORS_EXT: (DATA_IN, True, False),
    Command.READ_MULTIPLE: (DATA_IN, False, True),
    Command.READ_MULTIPLE_EXT: (DATA_IN, True, True),
    Command.WRITE_SECTORS: (DATA_OUT, False, False),
    Command.WRITE_SECTORS_NO_RETRY: (DATA_OUT, False, False),
    Command.WRITE_SECTORS_EXT: (DATA_OUT, True, False),
    Command.WRITE_MULTIPLE: (DATA_OUT, False, True),
    Command.WRITE_MULTIPLE_EXT: (DATA_OUT, True, True),
    Command.READ_DMA: (DMA_IN, False, False),
    Command.READ_DMA_NO_RETRY: (DMA_IN, False, False),
    Command.READ_DMA_EXT: (DMA_IN, True, False),
    Command.WRITE_DMA: (DMA_OUT, False, False),
    Command.WRITE_DMA_NO_RETRY: (DMA_OUT, False, False),
    Command.WRITE_DMA_EXT: (DMA_OUT, True, False),
    Command.READ_VERIFY: (IDLE, False, False),
    Command.READ_VERIFY_NO_RETRY: (IDLE, False, False),
    Command.READ_VERIFY_EXT: (IDLE, True, False),
}
"""The forms of READ, WRITE and VERIFY and their old numbers: which way sectors go, whether by a 48-bit address, whether many in a block."""

HANDLERS: Final[dict[int, Handler]] = {
    **{code: partial(_move, flow=flow, ext=ext, multiple=multiple) for code, (flow, ext, multiple) in MOVES.items()},
    Command.IDENTIFY: _identify,
    Command.SET_MULTIPLE: _set_multiple,
    Command.INITIALIZE_PARAMETERS: _initialize_parameters,
    Command.SET_FEATURES: _set_features,
    Command.FLUSH_CACHE: _flush,
    Command.FLUSH_CACHE_EXT: _flush,
    Command.READ_NATIVE_MAX: _native_max,
    Command.READ_NATIVE_MAX_EXT: _native_max_ext,
    Command.CHECK_POWER_MODE: _check_power,
    0x98: _check_power,
    Command.SLEEP: _sleep,
    0x99: _sleep,
    **dict.fromkeys(range(Command.RECALIBRATE, Command.RECALIBRATE + 16), _recalibrate),
    **dict.fromkeys(range(Command.SEEK, Command.SEEK + 16), _seek),
    **{code: partial(_power, mode=POWER_STANDBY) for code in (Command.STANDBY_IMMEDIATE, Command.STANDBY, 0x94, 0x96)},
    **{code: partial(_power, mode=POWER_IDLE) for code in (Command.IDLE_IMMEDIATE, Command.IDLE, 0x95, 0x97)},
}
